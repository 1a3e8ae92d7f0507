"""Whole weights on real ranks: the same at every number of them, in the right order, and gathered as they were."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jobs.masters import LAYERS, build, compute, gather_loaded, seeded, share
from samples import DATA
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import World

from qload import Registry
from qload.errors import ModelError, ParallelError
from qload.quantization import unquantized
from qload.torch import ReplicatedLinear, Site
from qload.torch.layers import gather_whole, initialize
from qload.torch.parallel import Group, gather_shares, make_share

Worlds = Callable[[int], World]
SIZES = {
    "replicated": 16,
    "column": 16,
    "row": 16,
    "merged": 12,
    "qkv": 24,
    "one head": 20,
    "embedding": 65,
    "head": 65,
}


def whole(name: str) -> dict[str, Tensor]:
    """A layer's weight and bias as one process makes them with torch alone."""
    generator = seeded()
    weight = nn.init.normal_(torch.empty(SIZES[name], 12, dtype=torch.float64), generator=generator)
    if name == "embedding":
        return {"weight": weight}
    return {"weight": weight, "bias": nn.init.normal_(weight.new_empty(SIZES[name]), generator=generator)}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(("dim", "stride"), [(0, 1), (1, 1), (0, 3), (1, 2), (-1, 2)])
def test_a_share_is_of_the_same_whole(worlds: Worlds, size: int, dim: int, stride: int) -> None:
    weight = nn.init.normal_(torch.empty(36, 24, dtype=torch.float64), generator=seeded())
    for rank, (own, gathered) in enumerate(worlds(size).run(share, (36, 24), dim, stride)):
        strided = weight.movedim(dim, 0).unflatten(0, (stride, size, -1))
        assert torch.equal(own, strided[:, rank].flatten(0, 1).movedim(0, dim))
        assert torch.equal(gathered, weight)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_same_at_every_number_of_ranks(worlds: Worlds, name: str, size: int) -> None:
    x, expected = torch.arange(24, dtype=torch.float64).reshape(2, 12), whole(name)
    for gathered, _, y in worlds(size).run(compute, name, x):
        assert gathered.keys() == expected.keys()
        for each, tensor in expected.items():
            assert torch.equal(gathered[each], tensor)
        if y is not None:
            torch.testing.assert_close(y, F.linear(x, expected["weight"], expected["bias"]))


def test_shares_are_shares(worlds: Worlds) -> None:
    """No rank keeps what is another's, and padding is zero: four ranks have 32, 32, 1 and none of 65 rows."""
    for rank, (_, own, _) in enumerate(worlds(4).run(compute, "embedding", torch.zeros(1, 12))):
        assert own["weight"].shape == (32, 12)
        rows = whole("embedding")["weight"][rank * 32 : rank * 32 + 32]
        assert torch.equal(own["weight"][: len(rows)], rows)
        assert not own["weight"][len(rows) :].any()
    for rank, (_, own, _) in enumerate(worlds(4).run(compute, "row", torch.zeros(1, 12, dtype=torch.float64))):
        assert torch.equal(own["weight"], whole("row")["weight"][:, rank * 3 : rank * 3 + 3])
        assert torch.equal(own["bias"], whole("row")["bias"])


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("ct-w4a16-g128-asym", "weight"),
        ("ct-w4a16-g128-asym", "weight_packed"),
        ("ct-w4a16-g128-asym", "weight_zero_point"),
        ("ct-fp8-static", "weight"),
        ("ct-fp8-static", "weight_scale"),
    ],
)
def test_what_is_quantized_is_gathered_as_it_is_stored_or_dense(worlds: Worlds, checkpoint: str, name: str) -> None:
    expected = gather_loaded(Group(), DATA / checkpoint, name)
    for found in worlds(2).run(gather_loaded, DATA / checkpoint, name):
        assert found.dtype == expected.dtype
        assert torch.equal(found.float(), expected.float())


def test_a_narrow_dtype_is_rounded_last() -> None:
    expected = nn.init.normal_(torch.empty(16, 12), generator=seeded()).bfloat16()
    assert torch.equal(build(Group(), "column", torch.bfloat16).get_parameter("weight"), expected)


def test_what_lies_on_meta_is_skipped() -> None:
    def fill(tensor: Tensor, *, generator: torch.Generator) -> None:
        raise AssertionError(tensor.shape, generator)

    generator = seeded()
    own = make_share((8, 6), Group(1, 2), fill, generator, dim=1, device="meta")
    assert own.is_meta
    assert own.shape == (8, 3)
    initialize(ReplicatedLinear(4, 2, Site(unquantized(Registry.discover()), "layer")), fill, generator)
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize(
    ("dim", "stride", "words"),
    [
        (0, 1, r"dimension 0 of \[6, 4\], stride 1: .*expected a multiple of 4, found 6"),
        (1, 2, r"dimension 1 of \[6, 4\], stride 2: .*expected a multiple of 8, found 4"),
        (1, 0, r"stride 0: .*cannot be divided evenly"),
    ],
)
def test_what_is_uneven_is_refused(dim: int, stride: int, words: str) -> None:
    with pytest.raises(ParallelError, match=words):
        make_share((6, 4), Group(0, 4), nn.init.normal_, seeded(), dim=dim, stride=stride)
    with pytest.raises(ParallelError, match="evenly"):
        gather_shares(torch.zeros(3, 3), Group(0, 2), 0, stride=2)


def test_what_a_layer_does_not_have_is_refused() -> None:
    layer: Any = build(Group(), "embedding")
    with pytest.raises(ModelError, match=r"layers\.0: the layer has no such tensor .expected weight, found bias"):
        gather_whole(layer, "bias")
    with pytest.raises(ModelError, match=r"layers\.0\.bias: only what is stored unquantized"):
        initialize(layer, nn.init.normal_, seeded(), "bias")
    with pytest.raises(ParallelError, match="no process group"):
        gather_whole(build(Group(0, 2), "row"))
