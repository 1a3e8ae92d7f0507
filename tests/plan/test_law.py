"""The planner's own law: whatever the layout, the copies write every entry that a rank owns exactly once."""

import types
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from planning import plan_layer, written
from samples import make_quantization

from qload import Quantization, Registry
from qload.checkpoint import Checkpoint, TensorEntry
from qload.declare import ParameterSpec, channel_scale, group_scale, index, packed, tensor_scale
from qload.errors import LayoutError, QloadError
from qload.geometry import Geometry, Part, Sharding, column, expert_parallel, replicated, row, vocabulary
from qload.hookspecs import Capabilities, MethodInfo, ModuleInfo
from qload.layout import in_, out, packing, part, volume
from qload.plan import Source, Target, forms, make_plan
from qload.plan.fits import Fit, make_fit
from qload.registry import UNQUANTIZED, Origin

WORDS = [(1, 1), packing(4), packing(3)]


def make_method(registry: Registry, specs: Sequence[ParameterSpec]) -> Quantization:
    """A quantization that declares those tensors for every module."""
    hooks: dict[str, Any] = {
        "qload_method_info": lambda: MethodInfo("made up", None, Capabilities()),
        "qload_scheme_for": lambda: "made up",
        "qload_create_weights": lambda: tuple(specs),
        "qload_dequantize": lambda layer: layer.values,
    }
    made = Origin("made-up", "made_up", "dist", "1", lambda: types.SimpleNamespace(**hooks))
    return make_quantization({"quant_method": "made-up"}, Registry([*registry.origins(UNQUANTIZED), made]))


@st.composite
def declarations(draw: st.DrawFn) -> tuple[ParameterSpec, ...]:
    """Tensors with axes of every kind, packed along either dimension or none."""
    rows, columns = (draw(st.sampled_from(WORDS)) for _ in range(2))
    group, whole = draw(st.sampled_from([1, 16, 128])), draw(st.booleans())
    return (
        packed("values", out(*rows), in_(*columns), dtypes=("I32",)),
        group_scale("scale", in_(group, whole=whole), out()),
        tensor_scale("input_scale"),
        index("columns", part(), in_(), bounds=(0, 1)),
    )


@st.composite
def layers(draw: st.DrawFn) -> tuple[Geometry, tuple[Source, ...]]:
    """A layer of fused parts or experts or both, and which of its parts lie together on disk."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    interleaved = len(sizes) > 1 and draw(st.booleans())
    step = draw(st.sampled_from([1, 16, 32]))
    parts = tuple(Part(f"p{n}", step * (sizes[0] if interleaved else size)) for n, size in enumerate(sizes))
    experts = draw(st.one_of(st.none(), st.integers(1, 4)))
    starts = [0, *(n for n in range(1, len(parts)) if not interleaved and draw(st.booleans())), len(parts)]
    numbers = [None] if experts is None or draw(st.booleans()) else list(range(experts))
    sources = tuple(
        Source(f"e{number}.{first}", first, stop - first, number)
        for number in numbers
        for first, stop in pairwise(starts)
    )
    in_features = step * draw(st.integers(1, 12))
    return Geometry(in_features, parts, experts, interleaved=interleaved), sources


@settings(max_examples=300, deadline=None)
@given(declarations(), layers(), st.integers(1, 4), st.data())
def test_every_entry_that_a_rank_owns_is_written_once(
    registry: Registry,
    specs: tuple[ParameterSpec, ...],
    layer: tuple[Geometry, tuple[Source, ...]],
    size: int,
    data: st.DataObject,
) -> None:
    geometry, sources = layer
    shardings: list[Sharding] = [column, row, replicated]
    shardings += [expert_parallel] if geometry.experts is not None else []
    sharding = data.draw(st.sampled_from(shardings))
    quantization = make_method(registry, specs)
    try:
        plans = [plan_layer(quantization, geometry, sources, sharding, rank, size) for rank in range(size)]
    except LayoutError:
        assume(False)
    for plan in plans:
        # A unit that the shard splits is named, and its parameter is not filled at all.
        assert {finding.code for finding in plan.findings} <= {"QL401"}
        slots = plan.layers[0].slots
        assert len(slots) == len(specs) - len(plan.findings)
        assert all((written(slot) == 1).all() for slot in slots)
        for copy in plan.copies:
            assert volume(copy.source) == volume(copy.destination)
            assert all(0 <= run.start <= run.stop <= size for run, size in zip(copy.source, copy.view, strict=True))


@given(declarations(), st.integers(1, 200), st.integers(1, 4), st.sampled_from([1, 32, 64]))
def test_padding_is_all_that_is_not_written(
    registry: Registry, specs: tuple[ParameterSpec, ...], rows: int, size: int, multiple: int
) -> None:
    quantization, geometry = make_method(registry, specs), Geometry(128, (Part("", rows),))
    plans = [
        plan_layer(quantization, geometry, (Source("a"),), vocabulary(multiple), rank, size) for rank in range(size)
    ]
    for plan in plans:
        for slot in plan.layers[0].slots:
            count = written(slot)
            assert count.max(initial=0) <= 1
            assert (count == 1).all() or slot.fill == 0
    scales = [slot for plan in plans for slot in plan.layers[0].slots if slot.name == "scale"]
    if len(scales) == size:
        assert sum(int(written(slot).sum()) for slot in scales) == rows * scales[0].shape[0]


def test_a_rank_that_owns_no_row_splits_no_word_and_copies_nothing(registry: Registry) -> None:
    """65 rows in shares of 32: the third rank has the last one, and the fourth has padding alone."""
    specs = (packed("values", out(8), in_(), dtypes=("I32",)), group_scale("scale", in_(16), out()))
    quantization, geometry = make_method(registry, specs), Geometry(64, (Part("", 65),))
    plans = [plan_layer(quantization, geometry, (Source("a"),), vocabulary(64), rank, 4) for rank in range(4)]
    assert [plan.findings for plan in plans] == [()] * 4
    assert [len(list(plan.copies)) for plan in plans] == [2, 2, 2, 0]
    assert [slot.shape for slot in plans[3].layers[0].slots] == [(4, 64), (4, 32)]


def test_a_rank_needs_no_module_of_an_expert_that_another_one_owns(registry: Registry) -> None:
    quantization = make_method(registry, (packed("values", out(), in_(), dtypes=("I8",)),))
    geometry, sources = Geometry(64, (Part("", 32),), experts=4), [Source(str(e), expert=e) for e in range(4)]
    assert plan_layer(quantization, geometry, sources[2:], expert_parallel, 1, 2).findings == ()
    found = plan_layer(quantization, geometry, sources[:3], expert_parallel, 1, 2).findings
    assert [(each.code, each.where) for each in found] == [("QL205", "layer.3")]


def test_a_tensor_that_two_sources_would_write_is_an_error_that_names_it(registry: Registry) -> None:
    """A scale by column of a fused layer: nothing says whose it is."""
    specs = (packed("values", out(), in_(), dtypes=("I8",)), channel_scale("scale", in_()))
    quantization = make_method(registry, specs)
    geometry = Geometry(64, (Part("a", 32), Part("b", 32)))
    with pytest.raises(QloadError, match=r"layer\.scale: .*exactly once \(expected 64 entries, found 128\)"):
        plan_layer(quantization, geometry, (Source("a"), Source("b", 1)))
    # Stored fused, it is one tensor.
    plan = plan_layer(quantization, geometry, (Source("ab", parts=2),))
    assert [slot.name for slot in plan.layers[0].slots] == ["values", "scale"]
    assert all((written(slot) == 1).all() for slot in plan.layers[0].slots)


def test_what_is_missing_is_a_finding_and_no_broken_law(registry: Registry) -> None:
    quantization = make_method(registry, (packed("values", out(), in_(), dtypes=("I8",)),))
    geometry = Geometry(64, (Part("a", 32), Part("b", 32)))
    sources = (Source("a"), Source("b", 1))
    plan = plan_layer(quantization, geometry, sources, changes={"b.values": None})
    assert [(finding.code, finding.where) for finding in plan.findings] == [("QL201", "b.values")]
    plan = plan_layer(quantization, geometry, sources[:1])
    assert [(finding.code, finding.where) for finding in plan.findings] == [("QL201", "layer.b")]


@pytest.mark.parametrize(
    ("source", "code", "found"),
    [
        (Source("4.a", 0, 2, expert=4), "QL205", "expert 4"),
        (Source("-1.a", 0, 2, expert=-1), "QL205", "expert -1"),
        (Source("0.c", 2, expert=0), "QL210", "part 2"),
        (Source("0.bc", 1, 2, expert=0), "QL210", "part 2"),
        (Source("0.z", -1, expert=0), "QL210", "part -1"),
    ],
)
def test_a_source_that_the_layer_has_no_place_for_is_one_finding(
    registry: Registry, source: Source, code: str, found: str
) -> None:
    specs = (packed("values", out(), in_(), dtypes=("I8",)), group_scale("scale", in_(16), out()))
    quantization = make_method(registry, specs)
    geometry = Geometry(64, (Part("a", 32), Part("b", 32)), experts=4)
    sources = [Source(f"{expert}.ab", 0, 2, expert) for expert in range(4)]
    stored = {f"{source.prefix}.{leaf}": TensorEntry("", "I8", (1, 1), "f", 0, 1) for leaf in ("values", "scale")}
    plan = plan_layer(quantization, geometry, sources, changes=stored, strays=[source])
    assert [(each.code, each.where, each.found) for each in plan.findings] == [(code, source.prefix, found)]
    assert all((written(slot) == 1).all() for slot in plan.layers[0].slots)


def test_an_expert_that_is_missing_is_named_as_it_would_be_stored(registry: Registry) -> None:
    quantization = make_method(registry, (packed("values", out(), in_(), dtypes=("I8",)),))
    geometry = Geometry(64, (Part("gate", 32), Part("up", 32)), experts=4)
    sources = [Source(f"layers.3.experts.{e}.{p}", n, expert=e) for e in range(4) for n, p in enumerate(("g", "u"))]
    plan = plan_layer(quantization, geometry, [each for each in sources if each.prefix != "layers.3.experts.3.u"])
    assert [(each.code, each.where) for each in plan.findings] == [("QL205", "layers.3.experts.3.u")]
    plan = plan_layer(quantization, geometry, [*sources, sources[2]])
    assert [(each.code, each.message) for each in plan.findings] == [("QL205", "an expert is stored more than once")]
    plan = plan_layer(quantization, geometry, [each for each in sources if each.part == 0])
    assert [each.where for each in plan.findings] == [f"layer.{expert}.up" for expert in range(4)]


def test_layers_and_experts_that_are_alike_cost_no_more_fits_than_one(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[Source] = []

    def count(spec: ParameterSpec, stored: ParameterSpec, source: Source, *others: Any) -> Fit:
        fits.append(source)
        return make_fit(spec, stored, source, *others)

    monkeypatch.setattr(forms, "make_fit", count)
    quantization = make_method(registry, (packed("values", out(), in_(), dtypes=("I8",)),))
    targets: list[Target] = []
    for number in range(10):
        # Each layer has values of its own, which are equal to the others'.
        geometry = Geometry(64, (Part("", 32),), experts=4)
        treatment = quantization.treat(ModuleInfo((f"layer.{number}",)))
        sources = tuple(Source(f"{number}.{expert}", expert=expert) for expert in range(4))
        targets.append(Target(str(number), geometry, treatment, replicated(geometry), sources))
    make_plan(Checkpoint(Path("x"), {}, {}), quantization, targets)
    assert len(fits) == 1


def test_layers_that_are_alike_may_be_divided_differently(registry: Registry) -> None:
    quantization = make_method(registry, (packed("values", out(), in_(), dtypes=("I8",)),))
    treatment, geometry = quantization.treat(ModuleInfo(("x",))), Geometry(64, (Part("", 32),))
    shards = (column(geometry, 1, 2), row(geometry, 1, 2), replicated(geometry, 1, 2))
    targets = [Target(str(n), geometry, treatment, shard, (Source("a"),)) for n, shard in enumerate(shards)]
    entries = {"a.values": TensorEntry("a.values", "I8", (32, 64), "f", 0, 2048)}
    plan = make_plan(Checkpoint(Path("x"), {}, entries), quantization, targets)
    assert [layer.slots[0].shape for layer in plan.layers] == [(16, 64), (32, 32), (32, 64)]
    assert [tuple(run.start for run in copy.source) for copy in plan.copies] == [(16, 0), (0, 32), (0, 0)]


def test_layers_that_are_alike_may_have_sources_that_stand_differently(registry: Registry) -> None:
    """What is worked out once for layers of one form is not taken for sources of another place."""
    quantization = make_method(registry, (packed("values", out(), in_(), dtypes=("I8",)),))
    treatment = quantization.treat(ModuleInfo(("x",)))
    plain, stack = Geometry(64, (Part("", 32),)), Geometry(64, (Part("", 32),), experts=2)
    targets = [
        Target("k", plain, treatment, replicated(plain), (Source("kv", before=0, after=32),)),
        Target("v", plain, treatment, replicated(plain), (Source("kv", before=32, after=0),)),
        Target("q", plain, treatment, replicated(plain), (Source("0"),)),
        Target("e", stack, treatment, replicated(stack), (Source("0", expert=0), Source("1", expert=1))),
        Target("f", stack, treatment, replicated(stack), (Source("1", expert=1), Source("0", expert=0))),
    ]
    stored = {f"{name}.values": ("I8", (rows, 64)) for name, rows in (("kv", 64), ("0", 32), ("1", 32))}
    entries = {name: TensorEntry(name, *what, "f", 0, 1) for name, what in stored.items()}
    plan = make_plan(Checkpoint(Path("x"), {}, entries), quantization, targets)
    assert plan.findings == ()
    rows = [copy.source[0].start for copy in plan.copies]
    places = [(copy.entry.name[0], copy.destination[0].start) for copy in plan.copies]
    assert rows == [0, 32, 0, 0, 0, 0, 0]
    assert [copy.view for copy in plan.copies][:3] == [(64, 64), (64, 64), (32, 64)]
    assert places[3:] == [("0", 0), ("1", 1), ("1", 1), ("0", 0)]
