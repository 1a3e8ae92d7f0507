"""Tensors that a checkpoint could store for a layer: random, and valid by their declarations alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qload.declare import ParameterKind, ParameterSpec
from qload.geometry import Geometry
from qload.plan import Source
from qload.quantization import Quantization, Treatment
from qload.torch.dtypes import torch_dtype

_SMALL = 0x48
"""Two bytes below it are a float16 below 8, wherever in a block they lie."""
_POWERS = (118, 122)
"""Codes of the powers of two from 1/512 to 1/64."""
_HALVES = (0b1001, 0b1100)
"""Masks of four elements that keep two, and do so too where they are read as two places of two bits each."""


def make_tensors(
    quantization: Quantization,
    treatment: Treatment,
    geometry: Geometry,
    sources: Sequence[Source],
    seed: int = 0,
) -> dict[str, Tensor]:
    """Every required tensor of a layer's sources, under its name on disk, with random values.

    Scales lie between 1/128 and 1/64, or are powers of two near there, and divisors their reciprocals; packed values
    and zero-points take all bit patterns, but for blocks of bytes, which may hold scales; indices assign columns to
    groups at random, but in equal shares; documents are the declaration's sample. Masks keep two of every four
    elements, and what has a length of its own holds as many.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for source in sources:
        stored = source.geometry(geometry)
        for spec in quantization.declare(treatment, stored):
            if not spec.required:
                continue
            kept = stored.out_features * stored.in_features // 2
            shape = spec.measure(kept).layout.shape(stored.extents)
            tensors[f"{source.prefix}.{spec.stored_as}"] = _make(spec, shape, generator)
    return tensors


def _make(spec: ParameterSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    dtype = torch_dtype(spec.dtypes[0])
    if spec.kind is ParameterKind.DOCUMENT:
        return torch.tensor(list(spec.sample.encode()), dtype=dtype)
    if spec.kind.is_scale and spec.bounds is not None:
        return torch.randint(_POWERS[0], _POWERS[1], shape, generator=generator, dtype=torch.int64).to(dtype)
    if spec.facts.divides:
        return (128 / (torch.rand(shape, generator=generator) + 1)).to(dtype)
    if spec.kind.is_scale:
        return ((torch.rand(shape, generator=generator) + 1) / 128).to(dtype)
    if spec.kind is ParameterKind.INDEX:
        return _make_index(spec, shape, generator).to(dtype)
    if spec.kind is ParameterKind.MASK:
        return _make_mask((*shape[:-1], shape[-1] * dtype.itemsize), generator).view(dtype)
    if spec.cast:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype is torch.uint8 and any(axis.stored > 1 for axis in spec.layout.axes):
        return torch.randint(0, _SMALL, shape, generator=generator, dtype=torch.int64).to(dtype)
    bits = torch.iinfo(dtype)
    least, beyond = spec.bounds or (bits.min, bits.max)
    return torch.randint(least, beyond, shape, generator=generator, dtype=torch.int64).to(dtype)


def _make_mask(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    halves = torch.tensor(_HALVES, dtype=torch.uint8)
    low, high = (halves[torch.randint(len(_HALVES), shape, generator=generator)] for _ in range(2))
    return low | high << 4


def _make_index(spec: ParameterSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    count = spec.bounds[1] if spec.bounds is not None else 1
    columns = shape[-1]
    order = torch.randperm(columns, generator=generator)
    return (order // -(-columns // count)).expand(shape)
