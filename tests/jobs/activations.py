"""Layers whose inputs are quantized with scales of their own, on the ranks of a group."""

from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load
from samples import make_quantization
from torch import Tensor
from torch.nn import functional as F

import qload
from qload.geometry import Kind, Part, Sharding, column, expert_parallel, row, single
from qload.hookspecs import ModuleInfo
from qload.plan import Source
from qload.torch import ExpertLinear, Experts, Layer, RowParallelLinear, Site
from qload.torch.layers.experts import expert_sources
from qload.torch.models.caching import RoundingCache
from qload.torch.parallel import Group

ROWS = 128
EXPERTS, HIDDEN, INNER = 4, 64, 64
NAMES = ("gate_proj", "up_proj", "down_proj")


def compute_rows(group: Group, section: Mapping[str, Any], stored: bytes, x: Tensor) -> list[Tensor]:
    """What a row-parallel layer makes of all features of x, and what it would with each rank's own scales."""
    quantization = make_quantization(dict(section))
    layer = RowParallelLinear(x.shape[-1], ROWS, Site(quantization, "layer", group), input_is_parallel=False)
    qload.load_tensors(layer, load(stored), quantization, kernels=())
    with torch.inference_mode(), mock.patch.object(Layer, "agree", lambda _, greatest: greatest):
        own = layer(x).clone()
    with torch.inference_mode():
        return [layer(x).clone(), own]


def differentiate_rows(group: Group, section: Mapping[str, Any], stored: bytes, x: Tensor) -> Tensor:
    """The gradient of a weighted sum of outputs."""
    quantization = make_quantization(dict(section))
    layer = RowParallelLinear(x.shape[-1], ROWS, Site(quantization, "layer", group), input_is_parallel=False)
    qload.load_tensors(layer, load(stored), quantization, kernels=())
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return leaf.grad if leaf.grad is not None else torch.empty(0)


def make_layers(group: Group, section: Mapping[str, Any], by_experts: bool) -> Experts:
    """Experts that the ranks divide: each into columns and rows, or one after another."""
    site = Site(make_quantization(dict(section)), "moe", group)

    def stack(inputs: int, names: tuple[str, ...], rows: int, sharding: Sharding) -> ExpertLinear:
        parts, sources = [Part(name, rows) for name in names], expert_sources(site, EXPERTS, names)
        chosen = expert_parallel if by_experts else sharding
        return ExpertLinear(EXPERTS, inputs, parts, site.at(names[0]), sources=sources, sharding=chosen)

    return Experts(stack(HIDDEN, NAMES[:2], INNER, column), stack(INNER, NAMES[2:], HIDDEN, row), gate)


def gate(projected: Tensor) -> Tensor:
    first, second = projected.chunk(2, -1)
    return F.silu(first) * second


def compute_experts(
    group: Group,
    section: Mapping[str, Any],
    stored: bytes,
    arguments: tuple[Tensor, Tensor, Tensor],
    by_experts: bool,
) -> tuple[Tensor, int]:
    """What experts make of their arguments, and how often this rank asked others to agree."""
    experts, asked = make_layers(group, section, by_experts), list[Tensor]()
    qload.load_tensors(experts, load(stored), make_quantization(dict(section)), kernels=())
    find = Group.max

    def count(self: Group, x: Tensor) -> Tensor:
        asked.append(x)
        return find(self, x)

    with torch.inference_mode(), mock.patch.object(Group, "max", count):
        return experts(*arguments).clone(), len(asked)


def round_heads(group: Group, section: Mapping[str, Any], keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What a cache whose heads the ranks divide gives back of this rank's: [batch, heads, tokens, head size]."""
    quantization = make_quantization(dict(section))
    geometry = single(keys.shape[1], 1, kind=Kind.KV_CACHE)
    treatment = quantization.treat(ModuleInfo(("attention",), Kind.KV_CACHE, ("Attention",)))
    scales = Layer(geometry, (Source("attention"),), Site(quantization, "attention"), treatment)
    scales.join(group)
    return RoundingCache(None, scales).update(group.take(keys, 1), group.take(values, 1))
