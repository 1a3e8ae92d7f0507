"""Whole weights, made and gathered by real ranks."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import qload
from qload import Registry
from qload.quantization import unquantized
from qload.torch import (
    ColumnParallelLinear,
    Layer,
    MergedColumnParallelLinear,
    ParallelLMHead,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
    VocabParallelEmbedding,
)
from qload.torch.layers import gather_whole, initialize
from qload.torch.layers.linear import Linear
from qload.torch.parallel import Group, gather_shares, make_share

SEED = 7
LAYERS: dict[str, Callable[[Site], Layer]] = {
    "replicated": lambda site: ReplicatedLinear(12, 16, site, bias=True),
    "column": lambda site: ColumnParallelLinear(12, 16, site, bias=True, gather_output=True),
    "row": lambda site: RowParallelLinear(12, 16, site, bias=True, input_is_parallel=False),
    "merged": lambda site: MergedColumnParallelLinear(12, [("a", 8), ("b", 4)], site, bias=True, gather_output=True),
    "qkv": lambda site: QKVParallelLinear(12, 2, 8, 2, site, bias=True, gather_output=True),
    "one head": lambda site: QKVParallelLinear(12, 2, 8, 1, site, bias=True, gather_output=True),
    "embedding": lambda site: VocabParallelEmbedding(65, 12, site),
    "head": lambda site: ParallelLMHead(65, 12, site, bias=True),
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def share(group: Group, shape: tuple[int, ...], dim: int, stride: int) -> tuple[Tensor, Tensor]:
    """This rank's share of a weight, and the whole that all of them make up."""
    own = make_share(shape, group, nn.init.normal_, seeded(), dim=dim, stride=stride, dtype=torch.float64)
    return own, gather_shares(own, group, dim, stride)


def build(group: Group, name: str, dtype: torch.dtype = torch.float64) -> Layer:
    layer = LAYERS[name](Site(unquantized(Registry.discover()), "layers.0", group, dtype))
    layer.allocate("cpu")
    generator = seeded()
    for each in layer.declared:
        initialize(layer, nn.init.normal_, generator, each)
    return layer


def compute(group: Group, name: str, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """A layer's whole tensors, this rank's share of them, and what it makes of x."""
    layer = build(group, name)
    y = layer(x) if isinstance(layer, Linear) else None
    whole = {each: gather_whole(layer, each) for each in layer.declared}
    return whole, {each: getattr(layer, each).detach() for each in layer.declared}, None if y is None else y.detach()


def gather_loaded(group: Group, checkpoint: Path, name: str) -> Tensor:
    """A tensor of a quantized layer, of which each rank has read its share."""
    site = Site(qload.read_quantization(checkpoint), "model.layers.0.mlp.gate_up_proj", group)
    model = nn.Module()
    model.layer = layer = MergedColumnParallelLinear(256, [("gate_proj", 512), ("up_proj", 512)], site)
    qload.load_weights(model, checkpoint, ignore=["QL210"], kernels=())
    return gather_whole(layer, name)
