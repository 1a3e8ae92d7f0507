"""Tables that are trained, divided by columns, or asked for what they do not have: as `torch.nn.Embedding`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jobs.vocabularies import look_up, train_table
from samples import make_quantization
from strangers import make_rows, registry_with
from torch import Tensor, nn
from worlds import World

import qload
from qload.declare import ParameterSpec, channel_scale, packed
from qload.errors import CapabilityError, LayoutError, ModelError, ShardError, TokenError
from qload.geometry import Kind, single
from qload.hookspecs import ModuleInfo
from qload.layout import in_, out
from qload.plan import Source
from qload.quantization import Quantization, unquantized
from qload.torch import Layer, ParallelLMHead, Site, VocabParallelEmbedding
from qload.torch.layers.vocabulary import VocabularyLayer
from qload.torch.parallel import Group

Worlds = Callable[[int], World]


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def own(weight: Tensor, rank: int, size: int, dim: int) -> Tensor:
    """A rank's rows or columns."""
    share = -(-weight.shape[dim] // size)
    return weight.narrow(dim, rank * share, share)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"padding_idx": -1}, {"max_norm": 1.5}])
@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_train_a_table_as_one_process_does(
    worlds: Worlds, size: int, dim: int, norm: float, options: dict[str, Any]
) -> None:
    """A row that is not looked up keeps its norm, and the row of padding has no gradient."""
    if norm != 2.0 and "max_norm" not in options:
        return
    weight, ids, factors = seeded(12, 8) * 2, torch.tensor([[11, 3, 0], [3, 7, 6]]), seeded(2, 3, 8)
    theirs = nn.Embedding(12, 8, norm_type=norm, **options)
    theirs.weight = nn.Parameter(weight.clone())
    expected = theirs(ids)
    (expected * factors).sum().backward()
    assert theirs.weight.grad is not None
    asked = {"sharding_dim": dim, "norm_type": norm, **options}
    for rank, found in enumerate(worlds(size).run(train_table, weight, ids, factors, asked)):
        torch.testing.assert_close(found["found"], expected)
        torch.testing.assert_close(found["weight"], own(theirs.weight.detach(), rank, size, dim))
        torch.testing.assert_close(found["gradient"], own(theirs.weight.grad, rank, size, dim))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_process_is_torchs(registry: qload.Registry, dtype: torch.dtype) -> None:
    weight, ids = (seeded(12, 8) * 2).to(dtype), torch.tensor([1, 1, 11])
    theirs = nn.Embedding(12, 8, max_norm=1.0, padding_idx=1, dtype=dtype)
    theirs.weight = nn.Parameter(weight.clone())
    ours = table(registry, 12, 8, dtype=dtype, max_norm=1.0, padding_idx=1)
    qload.load_tensors(ours, {"t.weight": weight}, unquantized(registry))
    assert torch.equal(ours(ids), theirs(ids))
    assert torch.equal(ours.get_parameter("weight")[:12], theirs.weight)


def table(registry: qload.Registry, rows: int, width: int, **options: Any) -> VocabParallelEmbedding:
    dtype, group = options.pop("dtype", torch.float32), options.pop("group", Group())
    return VocabParallelEmbedding(rows, width, Site(unquantized(registry), "t", group, dtype), **options)


@pytest.mark.parametrize("padding_idx", [12, -13])
def test_a_token_that_is_not_there_is_no_padding(registry: qload.Registry, padding_idx: int) -> None:
    with pytest.raises(ModelError, match=f"expected padding_idx of -12 to 11, found {padding_idx}"):
        table(registry, 12, 8, padding_idx=padding_idx)


@pytest.mark.parametrize("options", [{"padding_idx": 1}, {"max_norm": 1.0}])
def test_a_quantized_table_is_not_trained(options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="t: a quantized table is not trained"):
        VocabParallelEmbedding(64, 32, by_row(registry_with(make_rows())), **options)


def by_row(registry: qload.Registry, group: Group | None = None) -> Site:
    return Site(make_quantization({"quant_method": "rows"}, registry), "t", group or Group())


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("outside", [130, 191, 1 << 40, -1, -130])
def test_an_id_out_of_range_is_the_same_error_at_every_size(worlds: Worlds, size: int, outside: int) -> None:
    """Also one that names a row of padding, and one that would count from the end."""
    weight, ids = seeded(130, 8), torch.tensor([5, outside, 200])
    with pytest.raises(TokenError, match=rf"t: there is no such token among 130 \(expected 0 to 129, found {outside}"):
        worlds(size).run(look_up, weight, ids, 64)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_id_out_of_range_gives_zeros_where_that_is_asked_for(worlds: Worlds, size: int) -> None:
    weight, ids = seeded(130, 8), torch.tensor([130, 5, -1, 191, 1 << 40])
    for found in worlds(size).run(look_up, weight, ids, 64, {"zeros_out_of_range": True}):
        assert torch.equal(found[1], weight[5])
        assert not found[[0, 2, 3, 4]].any()


def test_negative_ids_do_not_count_from_the_end_of_a_quantized_table() -> None:
    registry = registry_with(make_rows())
    site = by_row(registry)
    layer = VocabParallelEmbedding(64, 32, site, multiple=1)
    stored = {"t.values": torch.ones(64, 32, dtype=torch.int8), "t.row_scale": torch.ones(64)}
    qload.load_tensors(layer, stored, site.quantization)
    assert layer(torch.tensor([63], dtype=torch.uint8)).shape == (1, 32)
    assert layer(torch.empty(0, 3, dtype=torch.int32)).shape == (0, 3, 32)
    with pytest.raises(TokenError, match="found -1"):
        layer(torch.tensor([-1]))
    with pytest.raises(TokenError, match=r"not integers .found bool"):
        layer(torch.tensor([True]))


def test_compiled_tables_assert_on_the_device(registry: qload.Registry) -> None:
    ours = table(registry, 12, 8)
    qload.load_tensors(ours, {"t.weight": seeded(12, 8)}, unquantized(registry))
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.tensor([3])), ours(torch.tensor([3])))
    with pytest.raises(RuntimeError, match="t: there is no such token among 12"):
        compiled(torch.tensor([12]))


@pytest.mark.parametrize("size", [2, 4])
def test_columns_are_gathered(worlds: Worlds, size: int) -> None:
    weight, ids = seeded(130, 8), torch.tensor([[129, 0], [64, 64]])
    for found in worlds(size).run(look_up, weight, ids, 64, {"sharding_dim": 1}):
        assert torch.equal(found, weight[ids])


def test_columns_that_cannot_be_divided_evenly_are_refused(registry: qload.Registry) -> None:
    with pytest.raises(ShardError, match="t: 10 input features cannot be divided by 4") as caught:
        table(registry, 12, 10, group=Group(0, 4), sharding_dim=1)
    assert caught.value.sizes == (1, 2, 5, 10)


@pytest.mark.parametrize("dim", [2, -1, True, None, "rows"])
def test_there_is_no_other_way_to_divide_a_table(registry: qload.Registry, dim: Any) -> None:
    with pytest.raises(LayoutError, match="t: a table is divided by rows or by columns"):
        table(registry, 12, 8, sharding_dim=dim)


def test_no_subclass_gets_around_the_hook_that_looks_rows_up() -> None:
    """Not one with a constructor of its own, that calls none but the last."""
    site = by_row(registry_with(make_rows(qload_embedding=None)))

    class Direct(VocabParallelEmbedding):
        def __init__(self, site: Site) -> None:
            treatment = site.treat((Source("t"),), Kind.EMBEDDING, ("Embedding",))
            Layer.__init__(self, single(64, 32, kind=Kind.LM_HEAD), (Source("t"),), site, treatment)

    class Middle(VocabParallelEmbedding):
        def __init__(self, site: Site) -> None:
            VocabularyLayer.__init__(self, 64, 32, site)

    class Renamed(Middle):
        kind = Kind.LM_HEAD

    for make in (lambda: Direct(site), lambda: Middle(site), lambda: Renamed(site)):
        with pytest.raises(CapabilityError, match="qload_embedding"):
            make()
    assert ParallelLMHead(64, 32, site).hooks.embedding is None


def test_a_head_is_no_embedding(registry: qload.Registry) -> None:
    head = ParallelLMHead(64, 32, Site(unquantized(registry), "lm_head"))
    head.allocate("cpu")
    with pytest.raises(ModelError, match=r"lm_head: .*looks no tokens up \(expected floats, found int64\)"):
        head(torch.tensor([1]))


def declare() -> tuple[ParameterSpec, ...]:
    return (packed("values", out(), in_(), dtypes=("I8",)), channel_scale("columns", in_(), dtypes=("F32",)))


def test_what_follows_no_output_is_whole_on_every_rank() -> None:
    """Scales of the columns, beside rows that are divided."""
    hooks = {
        "qload_create_weights": declare,
        "qload_dequantize": lambda layer: layer.values * layer.columns,
        "qload_embedding": lambda layer, ids: layer.values[ids] * layer.columns,
    }
    quantization: Quantization = by_row(registry_with(make_rows(**hooks))).quantization
    site = Site(quantization, "t", Group(1, 2))
    layer = VocabParallelEmbedding(64, 32, site, treatment=quantization.treat(ModuleInfo(("t",))))
    assert {name: tuple(tensor.shape) for name, tensor in layer.named_parameters()} == {
        "values": (32, 32),
        "columns": (32,),
    }
    values, columns = torch.arange(64)[:, None].expand(64, 32).to(torch.int8), seeded(32)
    qload.load_tensors(layer, {"t.values": values, "t.columns": columns}, quantization)
    assert torch.equal(layer.get_parameter("columns"), columns)
    assert torch.equal(layer.get_parameter("values"), values[32:])
