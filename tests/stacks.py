"""Experts to test with, that are not quantized: divided by their features, or some of them whole on each rank."""

from torch import Tensor
from torch.nn import functional as F

from qload.geometry import Part, expert_parallel
from qload.torch import ExpertLinear, Experts, Site, make_experts
from qload.torch.layers.experts import expert_sources

COUNT, HIDDEN = 4, 16
NAMES = ("gate_proj", "up_proj", "down_proj")


def gate(fused: Tensor) -> Tensor:
    first, second = fused.chunk(2, -1)
    return F.silu(first) * second


def by_columns(site: Site, inner: int) -> Experts:
    return make_experts(COUNT, HIDDEN, inner, site, gate=gate)


def whole_ones(site: Site, inner: int) -> Experts:
    """Each rank has some of the experts, whole."""

    def stack(in_features: int, names: tuple[str, ...], rows: int) -> ExpertLinear:
        parts, sources = [Part(name, rows) for name in names], expert_sources(site, COUNT, names)
        return ExpertLinear(COUNT, in_features, parts, site.at(names[0]), sources=sources, sharding=expert_parallel)

    return Experts(stack(HIDDEN, NAMES[:2], inner), stack(inner, NAMES[2:], HIDDEN), gate)
