"""Mixtures of experts whose two layers are divided each in a way of its own."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

import qload
from qload import Registry
from qload.geometry import Part, Sharding
from qload.plan import Source
from qload.quantization import unquantized
from qload.torch import ExpertLinear, Experts, Site
from qload.torch.parallel import Group


def gate(projected: Tensor) -> Tensor:
    first, second = projected.chunk(2, -1)
    return F.silu(first) * second


def compute_mixture(
    group: Group, ways: tuple[Sharding, Sharding], stored: Mapping[str, Tensor], x: Tensor, ids: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """What experts with biases make of x, and the gradient of x; whole stacks are stored as `up` and `down`."""
    quantization = unquantized(Registry.discover())
    site = Site(quantization, "", group, torch.float64)
    count, hidden, inner = stored["down.weight"].shape
    halves = [Part("gate", inner), Part("up", inner)]
    up = ExpertLinear(
        count, hidden, halves, site.at("up"), sources=[Source("up", parts=2)], sharding=ways[0], bias=True
    )
    down = ExpertLinear(
        count, inner, [Part("", hidden)], site.at("down"), sources=[Source("down")], sharding=ways[1], bias=True
    )
    experts = Experts(up, down, gate)
    qload.load_tensors(experts, stored, quantization, kernels=())
    leaf = x.clone().requires_grad_()
    made = experts(leaf, ids, chosen)
    made.square().sum().backward()
    if leaf.grad is None:
        raise ValueError("no gradient came back")
    return made.detach(), leaf.grad
