"""What is worked out once for modules that are alike is what each of them would be told by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from samples import is_swept, samples
from transformers.core_model_loading import WeightRenaming

from qload import QloadError
from qload.plan import Source, Target, forms
from qload.plan.forms import Filling, Form, Forms, Lengths
from qload.quantization import Quantization, Treatment
from qload.sharding import Share, find_share
from qload.torch.loading.load import Load, LoadOptions
from qload.torch.models import naming
from qload.torch.models.likeness import Match, Shapes, Template, tell_numbers
from qload.torch.models.loading import plan_load
from qload.torch.parallel import Group

everywhere = pytest.mark.parametrize("path", [*filter(is_swept, samples())], ids=lambda path: path.name)


def take_apart(patch: pytest.MonkeyPatch) -> None:
    """Ask, match, cut and plan every module, expert and tensor by itself."""

    def share(_: Quantization, name: str, treatment: Treatment, geometry: Any, *others: Any) -> Share:
        sharding, rank, size = others
        specs = [spec for spec in treatment.declare(geometry) if spec.loaded]
        return find_share(geometry, sharding, specs, name, rank, size)

    def make_form(own: Forms, target: Target, lengths: Lengths) -> Form:
        return Form(own.quantization, target.treatment, target.geometry, target.shard, lengths)

    patch.setattr(naming, "tell_numbers", lambda transforms: True)
    patch.setattr(Quantization, "_liken", lambda own, module: None)
    patch.setattr(Quantization, "share", share)
    patch.setattr(Forms, "_find", make_form)
    patch.setattr(forms, "find_expert_axis", lambda layout: None)
    patch.setattr(Filling, "read_all", lambda own, entries: None)


def tell(path: Path, rank: int, size: int, *, by_experts: bool = False) -> object:
    """What a load on one rank plans, or why it does not."""
    try:
        loading = Load.begin(path, LoadOptions(torch.device("cpu"), group=Group(rank, size)))
        planned = plan_load(loading, None, True, by_experts=by_experts)
    except QloadError as error:
        return str(error), getattr(error, "findings", ())
    parameters = {
        name: [(each.dtype, each.shape, each.identity.where) for each in layer.parameters()]  # type: ignore[attr-defined]
        for name, layer in planned.made.layers.items()
    }
    layers = [
        (layer.name, *map(repr, layer.slots), each and (each.geometry, each.treatment.label, each.shard, each.sources))
        for layer in planned.plan.layers
        for each in [layer.target]
    ]
    return layers, planned.plan.findings, parameters


@everywhere
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_what_is_alike_is_planned_as_if_by_itself(path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for by_experts in {False, size == 4}:
        found = tell(path, size - 1, size, by_experts=by_experts)
        with monkeypatch.context() as patch:
            take_apart(patch)
            assert tell(path, size - 1, size, by_experts=by_experts) == found


@pytest.mark.parametrize(
    ("pattern", "tells"),
    [
        (r"\.w13_weight", False),
        (r"layers\.(\d+)\.mlp", False),
        (r"attn\.conv1d$", False),
        (r"^norm_2\.", False),
        (r"layers\.0\.", True),
        (r"mlp\.(0|2)\.", True),
        (r"mlp\.[02]\.", True),
        (r"mlp\.\d{1}\.", True),
    ],
)
def test_only_digits_of_their_own_tell_one_number_from_another(pattern: str, tells: bool) -> None:
    assert tell_numbers([WeightRenaming(pattern, "x")]) is tells


def test_a_model_that_has_less_elsewhere_is_matched_there_by_itself() -> None:
    shapes = Shapes({f"a.{number}.x.weight": (2, 2) for number in (1, 2)})
    assert "a.1.x.weight" in shapes
    template = Template.of(Match([("a.1.x", Source("b.1"))], {"a.1.x.weight": "b.1.w"}, {}), ["1"], shapes)
    assert template is not None
    assert template.fill("b.2", ["b.2.w"], ["2"], shapes.known) == Match(
        [("a.2.x", Source("b.2"))], {"a.2.x.weight": "b.2.w"}, {}
    )
    assert template.fill("b.3", ["b.3.w"], ["3"], shapes.known) is None
    # What it has there, and not here, keeps the module from telling anything of others.
    assert "a.3.x.weight" not in shapes
    assert Template.of(Match([], {}, {}), ["3"], shapes) is None
    shapes.asked.clear()
    assert Template.of(Match([], {}, {}), ["1", "1"], shapes) is None
