"""Typed parameters: what they know, what they take of whole tensors, and what they refuse."""

import copy
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import DATA, make_quantization
from torch import Tensor, nn

import qload
from qload.declare import (
    ParameterKind,
    ParameterSpec,
    bias,
    block_scale,
    channel_scale,
    group_scale,
    index,
    packed,
    tensor_scale,
    weight,
)
from qload.declare.layers import complete
from qload.errors import CheckpointError, LayoutError, ParameterError
from qload.geometry import Geometry, Part, Sharding, column, expert_parallel, replicated, row, vocabulary
from qload.layout import Axis, Dim, Layout, fixed, in_, measured, out, part
from qload.torch import (
    Layer,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
    TypedParameter,
    VocabParallelEmbedding,
)
from qload.torch.identity import Identity
from qload.torch.parallel import Group


@dataclass(frozen=True)
class Declared:
    """A treatment that declares one tensor, whatever the geometry."""

    spec: ParameterSpec
    scheme: str = "the scheme"
    label: str = "declared"

    def declare(self, geometry: Geometry) -> tuple[ParameterSpec, ...]:
        return complete((self.spec,), geometry)


def make(
    spec: ParameterSpec,
    geometry: Geometry,
    sharding: Sharding = replicated,
    rank: int = 0,
    size: int = 1,
    aliases: tuple[str, ...] = (),
) -> TypedParameter:
    """A parameter of one rank's share, not loaded."""
    treatment: Any = Declared(spec)
    (whole,) = treatment.declare(geometry)
    identity = Identity("layer", whole, geometry, sharding(geometry, rank, size), treatment, aliases)
    dtype = geometry.dtype if spec.cast else spec.dtypes[0]
    return TypedParameter(identity.make_blank(dtype, torch.device("cpu")), identity)


def count_up(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Entries that are all different."""
    size = torch.Size(shape).numel()
    return torch.arange(size).reshape(*shape).to(dtype) if size else torch.empty(*shape, dtype=dtype)


MLP = Geometry(256, (Part("gate", 128), Part("up", 128)))
QKV = Geometry(256, (Part("query", 256, 8), Part("key", 64, 2, True), Part("value", 64, 2, True)))
KINDS = {
    "plain": weight("t", out(), in_(), dtypes=("F64",)),
    "packed": packed("t", in_(8), out(), dtypes=("I32",)),
    "packed column": packed("t", in_(), out(8), dtypes=("I32",)),
    "three bits": packed("t", out(), in_(32, 3), dtypes=("I32",)),
    "group scale": group_scale("t", in_(32), out(), dtypes=("F64",)),
    "channel scale": channel_scale("t", out(), fixed(1), dtypes=("F64",)),
    "block scale": block_scale("t", out(16), in_(16), dtypes=("F64",)),
    "tensor scale": tensor_scale("t", dtypes=("F64",)),
    "row only": index("t", in_(), bounds=(0, 1 << 20), dtypes=("I64",)),
    "bias": bias(),
}
kinds = pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS.keys())
sizes = pytest.mark.parametrize("size", [1, 2, 4])


def store(spec: ParameterSpec, geometry: Geometry, first: int = 0) -> Tensor:
    """A part's whole tensor, as a checkpoint would store it."""
    dtype = {"F64": torch.float64, "F32": torch.float32, "I32": torch.int32, "I64": torch.int64}[spec.dtypes[0]]
    return count_up(spec.layout.shape(geometry.extents), dtype) + first


def chunk(tensor: Tensor, spec: ParameterSpec, dim: Dim, rank: int, size: int) -> Tensor:
    """A rank's share, by torch's own division of the stored entries."""
    for axis, each in enumerate(spec.layout.axes):
        if each.dim is dim:
            return tensor.chunk(size, axis)[rank]
    return tensor


@kinds
@sizes
def test_column_parallel_parts(spec: ParameterSpec, size: int) -> None:
    """Merged columns and QKV alike: each part's share of the rows, one part after another."""
    for geometry, aliases in ((MLP, ()), (QKV, ("q", "k", "v"))):
        wholes = [store(spec, geometry.select(number), 1000 * number) for number in range(len(geometry.parts))]
        for rank in range(size):
            parameter = make(spec, geometry, column, rank, size, aliases)
            for whole, name in zip(wholes, aliases or [each.name for each in geometry.parts], strict=True):
                parameter.load(whole, name)
            shares = []
            for whole, each in zip(wholes, geometry.parts, strict=True):
                heads = each.heads or size
                replicas = max(1, size // heads)
                shares.append(chunk(whole, spec, Dim.OUT, rank // replicas, size // replicas))
            along = [axis for axis, each in enumerate(spec.layout.axes) if each.dim in (Dim.OUT, Dim.PART)]
            expected = torch.cat(shares, along[0]) if along else shares[-1]
            assert parameter.missing == frozenset()
            assert torch.equal(parameter, expected.to(parameter.dtype))


@kinds
@sizes
def test_row_parallel(spec: ParameterSpec, size: int) -> None:
    geometry = MLP.select(0)
    whole = store(spec, geometry)
    for rank in range(size):
        parameter = make(spec, geometry, row, rank, size)
        parameter.load(whole)
        assert torch.equal(parameter, chunk(whole, spec, Dim.IN, rank, size).to(parameter.dtype))


@kinds
@sizes
def test_a_tensor_fused_on_disk_is_split_by_itself(spec: ParameterSpec, size: int) -> None:
    whole = store(spec, Geometry(256, (Part("", 256),)))
    if spec.layout.follows(Dim.PART):
        whole = torch.tensor([3.0, 7.0], dtype=torch.float64)
    axis = next((axis for axis, each in enumerate(spec.layout.axes) if each.dim in (Dim.OUT, Dim.PART)), None)
    halves = (whole, whole) if axis is None else whole.chunk(2, axis)
    for rank in range(size):
        fused, apart = (make(spec, MLP, column, rank, size) for _ in range(2))
        fused.load(whole)
        for name, half in zip(("gate", "up"), halves, strict=True):
            apart.load(half, name)
        assert torch.equal(fused, apart)
        assert fused.missing == frozenset()


@pytest.mark.parametrize("experts", [1, 4])
@sizes
def test_experts_one_by_one_and_in_a_stack(experts: int, size: int) -> None:
    geometry = Geometry(64, (Part("gate", 32), Part("up", 32)), experts)
    spec = weight("t", out(), in_(), dtypes=("F64",))
    whole = count_up((experts, 64, 64), torch.float64)
    for sharding in (column, row, expert_parallel):
        if sharding is expert_parallel and experts < size:
            continue
        for rank in range(size):
            single, stacked = (make(spec, geometry, sharding, rank, size) for _ in range(2))
            for expert in range(experts):
                left = range(max(expert, single.shard.experts.start), single.shard.experts.stop)
                assert single.missing == {(number, each) for number in (0, 1) for each in left}
                for name, half in zip(("gate", "up"), whole[expert].chunk(2), strict=True):
                    single.load(half, name, expert)
            stacked.load(whole)
            share = whole
            if sharding is column:
                share = torch.cat([half.chunk(size, 1)[rank] for half in whole.chunk(2, 1)], 1)
            elif sharding is row:
                share = whole.chunk(size, 2)[rank]
            else:
                share = whole.chunk(size)[rank]
            assert torch.equal(single, share.to(single.dtype))
            assert torch.equal(stacked, single)
            assert single.missing == stacked.missing == frozenset()


@sizes
def test_a_vocabulary_and_rows_added_to_it(size: int) -> None:
    """Neither is wiped by the other, and padding is zero, whatever was loaded."""
    geometry = Geometry(4, (Part("base", 10), Part("added", 3)))
    spec = weight("t", out(), in_())
    base, added = torch.rand(10, 4), torch.rand(3, 4)
    for order in ((0, 1), (1, 0)):
        tables = []
        for rank in range(size):
            parameter = make(spec, geometry, vocabulary(4), rank, size)
            held = [cut.padded_size for cut in parameter.shard.out]
            for number in order:
                parameter.load((base, added)[number], number)
                assert parameter.missing == {(each, None) for each in (0, 1) if order.index(each) > order.index(number)}
            tables.append(torch.split(parameter, held))
        for number, whole in enumerate((base, added)):
            joined = torch.cat([table[number] for table in tables])
            assert torch.equal(joined[: len(whole)], whole)
            assert not joined[len(whole) :].any()


def test_padding_is_zero_before_anything_is_loaded() -> None:
    geometry = Geometry(4, (Part("base", 10), Part("added", 3)))
    for spec in (weight("t", out(), in_()), group_scale("t", out(), in_(2)), channel_scale("t", out())):
        for size in (1, 2, 4):
            for rank in range(size):
                parameter = make(spec, geometry, vocabulary(4), rank, size)
                held = [cut.padded_size for cut in parameter.shard.out]
                for table, cut in zip(torch.split(parameter, held), parameter.shard.out, strict=True):
                    assert table[: cut.size].isnan().all()
                    assert not table[cut.size :].any()


def test_padding_of_packed_rows_is_zero_before_anything_is_loaded() -> None:
    """Codes of scales that are NaN stand only where there are scales."""
    spec = ParameterSpec("t", ParameterKind.GROUP_SCALE, Layout((out(), in_(2))), ("U8",), "t", bounds=(0, 255))
    parameter = make(spec, Geometry(4, (Part("", 5),)), vocabulary(8))
    assert parameter.tolist() == [[255, 255]] * 5 + [[0, 0]] * 3


def test_allocated_tables_are_zero_where_they_are_padded() -> None:
    site = Site(make_quantization({"quant_method": "gptq", "bits": 4, "group_size": 32}), "table", Group(1, 2))
    table: Any = VocabParallelEmbedding(70, 4, site)
    table.allocate("cpu")
    assert table.weight[:6].isnan().all()
    assert not table.weight[6:].any()


@st.composite
def stored_axes(draw: st.DrawFn) -> tuple[Axis, ...]:
    units = st.sampled_from([(1, 1), (2, 1), (4, 1), (8, 1), (32, 3), (16, 9), (5, 2)])
    axes = [out(*draw(units)), in_(*draw(units))]
    if draw(st.booleans()):
        axes.append(fixed(draw(st.integers(1, 3))))
    return tuple(draw(st.permutations(axes)))


@given(
    stored_axes(),
    st.lists(st.integers(1, 96), min_size=1, max_size=3),
    st.integers(1, 96),
    st.sampled_from(["column", "row"]),
    st.integers(1, 6),
)
def test_shards_are_the_whole_or_are_refused(
    axes: tuple[Axis, ...], rows: list[int], columns: int, way: str, size: int
) -> None:
    """Whoever divides evenly, between units, gets shares that join into the whole; nobody else gets any."""
    spec = packed("t", *axes, dtypes=("I64",))
    geometry = Geometry(columns, tuple(Part(f"p{number}", count) for number, count in enumerate(rows)))
    divided, dim = (rows, Dim.OUT) if way == "column" else ([columns], Dim.IN)
    place = next(number for number, axis in enumerate(axes) if axis.dim is dim)
    logical = axes[place].logical
    fits = all(count % size == 0 and (size == 1 or count // size % logical == 0) for count in divided)
    wholes = [store(spec, geometry.select(number), 10000 * number) for number in range(len(rows))]
    sharding = column if way == "column" else row
    try:
        ranks = [make(spec, geometry, sharding, rank, size) for rank in range(size)]
        for rank in ranks:
            for number, whole in enumerate(wholes):
                rank.load(whole, number)
    except LayoutError:
        assert not fits
        return
    assert fits
    along = next(number for number, axis in enumerate(axes) if axis.dim is Dim.OUT)
    lengths = [axes[along].entries(count // size if way == "column" else count) for count in rows]
    parts = zip(*(torch.split(rank, lengths, along) for rank in ranks), strict=True)
    for whole, shares in zip(wholes, parts, strict=True):
        assert torch.equal(torch.cat(shares, place), whole)


@pytest.mark.parametrize("shape", [(64, 256), (129, 256), (128, 255), (256, 128), (128, 512), (1, 128, 256), (32768,)])
def test_the_whole_shape_is_checked(shape: tuple[int, ...]) -> None:
    """Also of what has the share that this rank would take."""
    parameter = make(KINDS["plain"], MLP, column, 0, 2)
    before = parameter.clone()
    with pytest.raises(ParameterError, match=r"^layer\.t: the weight has the wrong shape.*expected \[128, 256\]"):
        parameter.load(torch.zeros(shape, dtype=torch.float64), "gate")
    assert parameter.isnan().all()
    assert before.shape == parameter.shape
    assert parameter.missing == {(0, None), (1, None)}


@pytest.mark.parametrize("number", [-1, 2, True, 1.0, "down", "", "q", (0,), b"up"])
def test_parts_are_checked(number: Any) -> None:
    parameter = make(KINDS["plain"], MLP)
    with pytest.raises(ParameterError, match=r"no such part .*expected gate, up, or 0 to 1"):
        parameter.load(torch.zeros(128, 256, dtype=torch.float64), number)


@pytest.mark.parametrize("expert", [-1, 4, True, 1.0, "0"])
def test_experts_are_checked(expert: Any) -> None:
    stack = make(KINDS["plain"], Geometry(256, MLP.parts, 4))
    with pytest.raises(ParameterError, match=r"no such expert .*expected 0 to 3"):
        stack.load(torch.zeros(128, 256, dtype=torch.float64), "up", expert)
    with pytest.raises(ParameterError, match=r"no such expert .*expected none, found 0"):
        make(KINDS["plain"], MLP).load(torch.zeros(128, 256, dtype=torch.float64), "up", 0)


def test_scalars_and_tensors_of_one_entry_load_alike() -> None:
    spec = KINDS["tensor scale"]
    for value in (torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)):
        every, one = make(spec, MLP), make(spec, MLP)
        every.load(value)
        assert every.tolist() == [0.5, 0.5]
        one.load(value, "up")
        assert one.isnan().tolist() == [True, False]
        assert one[1] == 0.5
        assert one.missing == {(0, None)}


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (packed("t", out(), in_(), dtypes=("I8",)), torch.float32),
        (packed("t", out(), in_(), dtypes=("I8",)), torch.int32),
        (ParameterSpec("t", ParameterKind.GROUP_SCALE, Layout((out(), in_())), ("U8",), "t"), torch.float8_e8m0fnu),
        (packed("t", out(), in_(), dtypes=("U8",)), torch.float8_e4m3fn),
        (group_scale("t", out(), in_()), torch.float64),
        (weight("t", out(), in_()), torch.int8),
    ],
)
def test_lossy_dtypes_are_refused_unless_asked_for(spec: ParameterSpec, dtype: torch.dtype) -> None:
    parameter = make(spec, Geometry(2, (Part("", 2),)))
    values = torch.tensor([[1.0, 2.0], [4.0, 8.0]]).to(dtype)
    before = parameter.clone()
    with pytest.raises(ParameterError, match=r"that dtype.*cast=True converts it by value"):
        parameter.load(values)
    assert torch.equal(parameter, before) or before.isnan().all()
    parameter.load(values, cast=True)
    assert parameter.tolist() == [[1, 2], [4, 8]]
    assert parameter.dtype == before.dtype


def test_what_is_stored_says_in_which_dtype_a_scale_is_kept() -> None:
    parameter = make(group_scale("t", out(), in_(32)), MLP)
    assert parameter.dtype == torch.float32
    parameter.load(torch.ones(128, 8, dtype=torch.bfloat16), "gate")
    assert parameter.dtype == torch.bfloat16
    assert parameter[128:].isnan().all()
    with pytest.raises(ParameterError, match="expected BF16, found F32"):
        parameter.load(torch.ones(128, 8), "up")
    parameter.load(torch.ones(128, 8), "up", cast=True)
    assert parameter.eq(1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floats_are_cast_into_what_a_layer_computes_in(dtype: torch.dtype) -> None:
    parameter = make(weight("t", out(), in_()), Geometry(256, MLP.parts, dtype="BF16"))
    value = torch.rand(256, 256, dtype=dtype)
    parameter.load(value)
    assert torch.equal(parameter, value.to(torch.bfloat16))


def test_values_that_cannot_be_right_are_refused_before_they_are_written() -> None:
    scale, numbers = make(KINDS["group scale"], MLP), make(index("t", in_(), bounds=(0, 8)), MLP)
    with pytest.raises(CheckpointError, match="QL501"):
        scale.load(torch.full((8, 128), float("inf"), dtype=torch.float64), "up")
    assert not scale.isinf().any()
    with pytest.raises(CheckpointError, match="QL505"):
        numbers.load(torch.full((256,), 8, dtype=torch.int32))
    assert not numbers.any()


def test_what_only_the_file_knows_the_length_of_is_empty_before() -> None:
    parameter = make(packed("t", part(), measured(), dtypes=("U8",)), MLP)
    assert parameter.numel() == 0
    parameter.load(torch.tensor([1, 2, 3], dtype=torch.uint8).reshape(1, 3), "up")
    assert parameter.tolist() == [[0, 0, 0], [1, 2, 3]]
    parameter.load(torch.tensor([[4, 5, 6, 7]], dtype=torch.uint8), "gate")
    assert parameter.tolist() == [[4, 5, 6, 7], [1, 2, 3, 0]]
    parameter.load(torch.tensor([[8]], dtype=torch.uint8), 0)
    assert parameter[0, 0] == 8


def test_a_parameter_knows_what_it_is() -> None:
    layer: Any = ReplicatedLinear(256, 512, Site(qload.read_quantization(DATA / "gptq-4bit-g128-asym"), "x.gate_proj"))
    packed_weight = layer.qweight
    assert packed_weight.kind is ParameterKind.PACKED
    assert packed_weight.axes == (in_(8), out())
    assert packed_weight.geometry == layer.geometry
    assert packed_weight.shard == layer.shard
    assert packed_weight.scheme == layer.scheme
    assert packed_weight.identity.where == "x.gate_proj.qweight"


def test_a_tensor_of_ggml_keeps_its_type() -> None:
    model = qload.load(DATA / "autoround-gguf-q4_k_m", kernels=())
    types = {
        parameter.scheme.type
        for parameter in model.parameters()
        if isinstance(parameter, TypedParameter) and parameter.scheme is not None
    }
    assert {"Q4_K", "Q6_K"} <= types
    one: Any = next(each for each in model.parameters() if getattr(each, "scheme", None) is not None)
    assert copy.deepcopy(one).scheme == pickle.loads(pickle.dumps(one)).scheme == one.scheme


def linear() -> Any:
    layer = ReplicatedLinear(
        256, 128, Site(qload.read_quantization(DATA / "gptq-4bit-g128-asym"), "x", dtype=torch.float16)
    )
    layer.allocate("cpu")
    return layer


def save(parameter: Tensor) -> Any:
    file = io.BytesIO()
    torch.save(parameter, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def move_by_swapping(parameter: Any) -> Any:
    layer = linear()
    layer.qweight = parameter
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return layer.to("cpu", torch.float32).qweight
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def assign(parameter: Any) -> Any:
    layer = linear()
    layer.load_state_dict({**linear().state_dict(), "qweight": parameter.detach()}, assign=True)
    return layer.qweight


def move(parameter: Any) -> Any:
    layer = linear()
    layer.qweight = parameter
    return layer.to("meta").qweight


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda parameter: pickle.loads(pickle.dumps(parameter)),
    "save": save,
    "swap": move_by_swapping,
    "assign": assign,
    "move": move,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_copies_keep_the_type_and_what_it_knows(way: Any) -> None:
    parameter: Any = linear().qweight
    parameter.load(torch.randint(0, 9, parameter.shape, dtype=torch.int32))
    vars(parameter)["note"] = "a user's own"
    found: Any = way(parameter)
    assert type(found) is TypedParameter
    assert found.identity.spec == parameter.identity.spec
    assert found.identity.geometry == parameter.geometry
    assert found.identity.treatment.method == parameter.identity.treatment.method
    assert found.scheme == parameter.scheme
    assert found.shard == parameter.shard
    assert found.requires_grad is False
    assert found.is_meta or torch.equal(found, parameter)
    if way is not assign:
        assert found.loaded == parameter.loaded
        assert vars(found)["note"] == "a user's own"


def test_copies_are_apart() -> None:
    parameter = linear().qweight
    copied = copy.deepcopy(parameter)
    copied.load(torch.ones(parameter.shape, dtype=torch.int32))
    assert not parameter.any()
    assert parameter.missing
    first, second = copy.deepcopy([parameter, parameter])
    assert first is second


def test_layers_keep_their_types_when_they_are_copied_moved_and_cast() -> None:
    layer = linear()
    shapes = {name: type(tensor) for name, tensor in layer.named_parameters()}
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.half(), layer.to("meta")):
        assert {name: type(tensor) for name, tensor in other.named_parameters()} == shapes
        assert set(shapes.values()) == {TypedParameter}


def test_what_a_user_puts_in_a_layer_stays_theirs() -> None:
    layer = linear()
    layer.scales = nn.Parameter(torch.ones(2, 128), requires_grad=False)
    for other in (layer.half(), copy.deepcopy(layer), layer.to("meta")):
        assert type(other.scales) is nn.Parameter
        assert other.find_parameter("scales") is None
        assert type(other.qweight) is TypedParameter
    with pytest.raises(ParameterError, match="no memory of its own"):
        layer.load("x.scales", torch.ones(2, 128))


def test_computing_gives_plain_tensors_and_compiles() -> None:
    layer: Any = QKVParallelLinear(
        256, 32, 8, 4, Site(qload.read_quantization(DATA / "base"), "model.layers.0.self_attn.x")
    )
    holder = nn.ModuleList([layer])
    qload.load_weights(holder, DATA / "base", ignore=["QL210"])
    assert {type(layer.weight * 2), type(layer.weight[0]), type(layer.weight.data)} == {Tensor}
    assert {type(tensor) for tensor in layer.state_dict().values()} == {Tensor}
    x = torch.rand(2, 256)
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), layer(x))


@pytest.mark.parametrize("dims", [(1, 0), (-1, 0), (-1, -2), (0, 1), (0, -1)])
def test_axes_are_permuted_with_what_they_pack(dims: tuple[int, int]) -> None:
    whole = count_up((32, 128), torch.int32)
    for rank in range(2):
        before = make(KINDS["packed"], MLP, column, rank, 2)
        after = before.permute_axes(*dims)
        for number in (0, 1):
            before.load(whole + number, number)
            after.load(whole + number, number)
        again = before.permute_axes(*dims)
        for found in (after, again):
            assert torch.equal(found, before.data.permute(dims))
            assert found.is_contiguous()
            assert found.axes == tuple(before.axes[dim] for dim in dims)
            assert found.permute_axes(*dims).axes == before.axes
        assert [axis.logical for axis in after.axes] == [(8, 1)[dim % 2] for dim in dims]


@pytest.mark.parametrize("dims", [(0,), (0, 0), (0, 2), (-3, 0), (0, 1, 2)])
def test_axes_are_named_once(dims: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match="each of 2 axes once"):
        make(KINDS["packed"], MLP).permute_axes(*dims)


def test_one_group_is_replicated_under_row_parallelism() -> None:
    quantization = make_quantization({"quant_method": "gptq", "bits": 4, "group_size": -1})
    scales = torch.rand(1, 128).half()
    for rank in range(4):
        layer: Any = RowParallelLinear(256, 128, Site(quantization, "x.down_proj", Group(rank, 4)))
        layer.allocate("cpu")
        layer.scales.load(scales)
        assert torch.equal(layer.scales, scales)
        assert layer.qweight.shape == (8, 128)


def test_kv_heads_are_replicated_under_that_name() -> None:
    quantization = make_quantization({"quant_method": "gptq", "bits": 4, "group_size": 32})
    names = ("wq", "wk", "wv")
    keys = count_up((32, 64), torch.int32)
    for size, replicas in ((1, 1), (2, 1), (4, 2), (8, 4)):
        for rank in range(size):
            layer: Any = QKVParallelLinear(256, 32, 8, 2, Site(quantization, "x", Group(rank, size)), names=names)
            assert layer.kv_replicas == replicas
            layer.allocate("cpu")
            for name in ("k", "wk", 1):
                layer.qweight.load(keys, name)
            queries, held, _ = torch.split(layer.qweight, [part.size for part in layer.local.parts], 1)
            assert torch.equal(held, keys.chunk(size // replicas, 1)[rank // replicas])
            assert not queries.any()


def test_a_derived_tensor_is_not_loaded() -> None:
    layer: Any = linear()
    layer.derive(channel_scale("row_scale", out()), torch.ones(128))
    with pytest.raises(ParameterError, match="the layer's method derived"):
        layer.row_scale.load(torch.ones(128))


def test_synchronize_is_called_after_each_copy() -> None:
    """When a part's copy has been made, and before the next one."""
    geometry = Geometry(8, (Part("a", 2), Part("b", 2)))
    parameter = make(KINDS["plain"], geometry, column, 1, 2)
    seen: list[int] = []
    parameter.load(
        torch.ones(4, 8, dtype=torch.float64), synchronize=lambda: seen.append(int((~parameter.isnan()).sum()))
    )
    assert seen == [8, 16]


def test_nothing_is_kept_of_the_module() -> None:
    """A parameter that is copied or saved takes no layer along."""
    parameter = linear().qweight
    assert not any(isinstance(value, Layer) for value in vars(parameter).values())
    assert len(pickle.dumps(parameter)) < parameter.nbytes + 8192
