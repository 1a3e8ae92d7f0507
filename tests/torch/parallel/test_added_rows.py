"""Vocabularies with added rows: the same at every size, plain and quantized, however their tensors are stored."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jobs.vocabularies import use_vocabulary
from samples import make_quantization
from torch import Tensor
from torch.nn import functional as F
from worlds import World

import qload
from qload.declare import ParameterSpec, packed
from qload.errors import CheckpointError, LayoutError, ModelError, ShardError
from qload.hookspecs import ModuleInfo
from qload.layout import in_, out
from qload.plan import Source
from qload.quantization import Quantization, Treatment, unquantized
from qload.testing.tensors import make_tensors
from qload.torch import ParallelLMHead, Site, VocabParallelEmbedding, added_rows, all_rows, base_rows
from qload.torch.parallel import Group
from qload.torch.tokens import find_rows

Worlds = Callable[[int], World]

PLAIN: dict[str, Any] = {"quant_method": "unquantized"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
WIDTH = 64


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def read(section: dict[str, Any], registry: qload.Registry) -> tuple[Quantization, Treatment]:
    quantization = unquantized(registry) if section is PLAIN else make_quantization(section, registry)
    leaves = frozenset(["qweight"])
    return quantization, quantization.treat(ModuleInfo(("t",), stored=leaves))


def make_table(
    section: dict[str, Any], registry: qload.Registry, rows: int, added: int, group: Group, **options: Any
) -> tuple[VocabParallelEmbedding, Quantization]:
    quantization, treatment = read(section, registry)
    site = Site(quantization, "t", group)
    return VocabParallelEmbedding(rows, WIDTH, site, added=added, treatment=treatment, **options), quantization


WHOLE = Group()


@pytest.mark.parametrize("multiple", [8, 64])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("section", [AWQ, GPTQ], ids=lambda section: str(section["quant_method"]))
@pytest.mark.parametrize("size", [1, 2])
def test_quantized_tables_and_heads_are_the_whole_at_every_size(
    worlds: Worlds, registry: qload.Registry, size: int, section: dict[str, Any], apart: bool, multiple: int
) -> None:
    """Both store [in, out], and pack eight outputs of the zero-points, or of all, in a word."""
    sources = [base_rows("t"), added_rows("a")] if apart else [all_rows("t")]
    table, quantization = make_table(section, registry, 48, 16, WHOLE, multiple=1)
    tensors = make_tensors(quantization, table.treatment, table.geometry, sources)
    table.sources = tuple(sources)
    qload.load_tensors(table, tensors, quantization)
    weight, bias = table.dequantize(torch.float32), seeded(64)
    tensors |= {"t.bias": bias[:48], "a.bias": bias[48:]} if apart else {"t.bias": bias}
    ids, hidden = torch.tensor([[0, 63, 47], [48, 24, 23]]), seeded(3, WIDTH)
    sizes = {"rows": 48, "width": WIDTH, "added": 16, "multiple": multiple}
    for found in worlds(size).run(use_vocabulary, section, tensors, sizes, sources, ids, hidden):
        torch.testing.assert_close(found["rows"], F.embedding(ids, weight), atol=1e-3, rtol=1e-3)
        for name in ("logits", "tied"):
            torch.testing.assert_close(found[name], F.linear(hidden, weight, bias), atol=1e-2, rtol=1e-3)


def test_added_rows_are_looked_up_where_they_lie(registry: qload.Registry) -> None:
    weight, ids = seeded(12, WIDTH), torch.arange(12)
    for size in (1, 2):
        total = torch.zeros(12, WIDTH)
        for rank in range(size):
            table, quantization = make_table(PLAIN, registry, 8, 4, Group(rank, size), multiple=1)
            table.sources = (all_rows("t"),)
            qload.load_tensors(table, {"t.weight": weight}, quantization)
            total += table.look_up(ids)
            rows, owned = find_rows(ids, table.index.spans)
            if size == 2:
                expected = ([0, 1, 2, 3, -1, -1, -1, -1, 4, 5, -1, -1], [-1, -1, -1, -1, 0, 1, 2, 3, -1, -1, 4, 5])
                assert torch.where(owned, rows, -1).tolist() == expected[rank]
        assert torch.equal(total, weight)


@pytest.mark.parametrize("section", [PLAIN, AWQ, GPTQ], ids=lambda section: str(section["quant_method"]))
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 2), (1, 2)])
def test_no_load_wipes_the_rows_of_another(
    registry: qload.Registry, rank: int, size: int, section: dict[str, Any]
) -> None:
    table, quantization = make_table(section, registry, 48, 16, Group(rank, size), multiple=16)
    both = (base_rows("t"), added_rows("a"))
    old, new = (make_tensors(quantization, table.treatment, table.geometry, both, seed) for seed in (1, 2))

    def load(sources: tuple[Source, ...], tensors: dict[str, Tensor]) -> None:
        prefixes = tuple(f"{source.prefix}." for source in sources)
        table.sources = sources
        qload.load_tensors(
            table, {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}, quantization
        )

    def expect(base: dict[str, Tensor], added: dict[str, Tensor]) -> None:
        fresh, _ = make_table(section, registry, 48, 16, Group(rank, size), multiple=16)
        fresh.sources = both
        stored = {name: (base if name.startswith("t.") else added)[name] for name in base}
        qload.load_tensors(fresh, stored, quantization)
        for name, tensor in fresh.named_parameters():
            assert torch.equal(table.get_parameter(name), tensor)

    load(both[:1], old)
    first = table.index.base.padded_size
    assert not table.dequantize()[first:].any()
    load(both[1:], old)
    expect(old, old)
    load(both[:1], new)
    expect(new, old)
    load(both[1:], new)
    expect(new, new)
    load(both, old)
    expect(old, old)


def test_an_extended_table_fills_both(registry: qload.Registry) -> None:
    table, quantization = make_table(PLAIN, registry, 8, 4, WHOLE, multiple=8)
    weight = seeded(12, WIDTH)
    table.sources = (all_rows("t"),)
    qload.load_tensors(table, {"t.weight": weight}, quantization)
    assert torch.equal(table.get_parameter("weight")[:12], weight)
    assert not table.get_parameter("weight")[12:].any()
    assert torch.equal(table(torch.arange(12)), weight)
    table.sources = (added_rows("t"),)
    qload.load_tensors(table, {"t.weight": -weight[8:]}, quantization)
    assert torch.equal(table(torch.arange(12)), torch.cat([weight[:8], -weight[8:]]))
    with pytest.raises(CheckpointError, match=r"expected \[4, 64\], found \[12, 64\]"):
        qload.load_tensors(table, {"t.weight": weight}, quantization)


def test_rows_that_a_hook_has_rewritten_are_not_mixed_with_others(registry: qload.Registry) -> None:
    table, quantization = make_table(PLAIN, registry, 8, 4, WHOLE)
    qload.load_tensors(table, {"t.weight": seeded(8, WIDTH)}, quantization)
    table.set_tensor("weight", None)
    table.derive(make_spec(), torch.zeros(128, WIDTH, dtype=torch.int8))
    table.sources = (added_rows("t"),)
    with pytest.raises(ModelError, match=r"stored otherwise .expected weight, found repacked.; load the whole"):
        qload.load_tensors(table, {"t.weight": seeded(4, WIDTH)}, quantization)


def test_rows_of_another_dtype_are_not_mixed_with_others(registry: qload.Registry) -> None:
    table, quantization = make_table(PLAIN, registry, 8, 4, WHOLE)
    qload.load_tensors(table, {"t.weight": seeded(8, WIDTH)}, quantization)
    table.set_tensor("weight", table.get_parameter("weight").detach().double())
    table.sources = (added_rows("t"),)
    with pytest.raises(ModelError, match=r"t\.weight: .*expected torch.float64 \[128, 64\], found torch.float32"):
        qload.load_tensors(table, {"t.weight": seeded(4, WIDTH)}, quantization)


def make_spec() -> ParameterSpec:

    return packed("repacked", out(), in_(), dtypes=("I8",))


def test_a_word_that_two_ranks_would_share_is_an_error(registry: qload.Registry) -> None:
    with pytest.raises(ShardError, match=r"t\.qweight.*split a unit of the axis out") as caught:
        make_table(AWQ, registry, 24, 0, Group(0, 2), multiple=1)
    assert caught.value.unit == 8
    assert caught.value.sizes[:2] == (1, 3)
    assert make_table(AWQ, registry, 24, 0, Group(0, 2), multiple=16)[0].local.out_features == 16


def test_base_and_added_rows_that_share_a_word_are_not_read_apart(registry: qload.Registry) -> None:
    table, quantization = make_table(AWQ, registry, 12, 4, WHOLE, multiple=8)
    table.sources = (all_rows("t"),)
    tensors = make_tensors(quantization, table.treatment, table.geometry, table.sources)
    with pytest.raises(CheckpointError, match="split a unit of the axis out"):
        qload.load_tensors(table, tensors, quantization)


def test_padding_is_zero_before_anything_is_loaded(registry: qload.Registry) -> None:
    """Rows of tokens are not: they have not been written."""
    table, _ = make_table(PLAIN, registry, 10, 3, Group(1, 2), multiple=8)
    table.allocate("cpu")
    weight = table.get_parameter("weight")
    # Of the base 8 to 9, and of the added none: the first rank has all three.
    assert weight.shape == (8 + 4, WIDTH)
    assert weight.isnan().all(1).tolist() == [True] * 2 + [False] * 10
    assert not weight[2:].any()


def test_a_head_is_tied_to_the_same_tokens_alone(registry: qload.Registry) -> None:
    quantization = unquantized(registry)
    site = Site(quantization, "t", Group(1, 2))
    table = VocabParallelEmbedding(100, 8, site, added=4)
    for rows, added, size in ((100, 4, 2), (104, 0, 2), (101, 4, 2), (100, 4, 3)):
        head = ParallelLMHead(rows, 8, Site(quantization, "h", Group(1, size)), added=added)
        if (rows, added, size) == (100, 4, 2):
            head.tie(table)
            assert head.weight is table.weight
            continue
        with pytest.raises(ModelError, match="a table of its own shape"):
            head.tie(table)


@pytest.mark.parametrize(("rows", "width", "added"), [(0, 8, 0), (8, 0, 0), (8, 8, -1)])
def test_sizes_that_no_table_has(registry: qload.Registry, rows: int, width: int, added: int) -> None:
    for layer in (VocabParallelEmbedding, ParallelLMHead):
        with pytest.raises(LayoutError, match="a vocabulary has too few"):
            layer(rows, width, Site(unquantized(registry), "t"), added=added)
