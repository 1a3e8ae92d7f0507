"""The tensors of each format."""

from collections.abc import Iterator
from dataclasses import replace

from qload.declare import (
    ParameterSpec,
    View,
    block_scale,
    channel_scale,
    global_scale,
    group_scale,
    index,
    keep_together,
    mask,
    metadata,
    packed,
    power_scale,
    tensor_scale,
    weight,
    zero_point,
)
from qload.dtypes import FLOATS
from qload.geometry import Geometry
from qload.layout import Axis, Dim, fixed, in_, measured, out, packing, part
from qload_compressed_tensors.config import Strategy
from qload_compressed_tensors.formats import MARLIN_24, NVFP4, PACKED, PLAIN_FORMATS, SMALL_FLOATS, SPARSE, SPARSE_24
from qload_compressed_tensors.quantizers import Quantizer
from qload_compressed_tensors.schemes import CacheScheme, CompressedScheme, SparseScheme


def declare_weight(scheme: CompressedScheme, geometry: Geometry) -> Iterator[ParameterSpec]:
    """Everything that a quantized module stores."""
    group = scheme.inputs.group if scheme.inputs is not None else None
    for spec in _declare(scheme, geometry):
        made = replace(spec, layout=spec.layout.solidify(*_solid_dims(scheme)))
        yield made if group is None else keep_together(made, Dim.IN, group)


def _solid_dims(scheme: CompressedScheme) -> tuple[Dim, ...]:
    """The dimensions along which no rank can have a share.

    Values without a place of their own are not cut at all. Where outputs are quantized, they must be whole sums; and
    whole rows, where their scales are found from them.
    """
    if scheme.sparsity == SPARSE or (scheme.outputs is not None and scheme.outputs.dynamic):
        return Dim.IN, Dim.OUT
    return (Dim.IN,) if scheme.outputs is not None else ()


def _declare(scheme: CompressedScheme, geometry: Geometry) -> Iterator[ParameterSpec]:
    weights = scheme.weights
    if scheme.format == MARLIN_24:
        yield from _marlin(weights)
    else:
        yield from _values(scheme)
        yield from _scales(scheme)
        yield from _zero_point(scheme)
        yield from _index(weights, geometry)
    yield from _activations("input", scheme.inputs)
    yield from _activations("output", scheme.outputs)


def declare_sparse(scheme: SparseScheme) -> Iterator[ParameterSpec]:
    """What a module stores that is not quantized, and has no zeros."""
    yield weight("compressed", *_kept(scheme.sparsity), view=_kept_view(scheme.sparsity))
    yield from _mask(scheme.sparsity)


def declare_cache(scheme: CacheScheme) -> Iterator[ParameterSpec]:
    """What an attention stores. Source: compressed-tensors, `initialize_attn_qparams`."""
    for name in ("k", "v"):
        yield from _activations(name, scheme.states)


def _values(scheme: CompressedScheme) -> Iterator[ParameterSpec]:
    weights = scheme.weights
    if scheme.format == PACKED:
        yield packed("weight_packed", out(), in_(*packing(weights.bits)), dtypes=("I32",))
        yield metadata("weight_shape", fixed(2), dtypes=("I64", "I32"))
        return
    if scheme.format in SMALL_FLOATS and weights.bits < 8:
        yield packed("weight_packed", out(), in_(*packing(weights.bits, 8)), dtypes=("U8",))
        return
    dtypes = ("F8_E4M3",) if weights.is_float else ("I8",)
    if scheme.sparsity is None:
        yield packed("weight_quantized", out(), in_(), dtypes=dtypes, stored_as="weight")
        return
    yield packed("compressed", *_kept(scheme.sparsity), dtypes=dtypes, view=_kept_view(scheme.sparsity))
    yield from _mask(scheme.sparsity)


def _kept(sparsity: str) -> tuple[Axis, Axis]:
    """Two of every four columns of a row, or as many values as the mask has ones, row after row."""
    return (out(), in_(4, 2)) if sparsity == SPARSE_24 else (part(), measured())


def _kept_view(sparsity: str) -> View:
    return View.EXACT if sparsity == SPARSE_24 else View.SQUEEZED


def _mask(sparsity: str) -> Iterator[ParameterSpec]:
    """Source: compressed-tensors 0.13, `Sparse24BitMaskTensor` and `BitmaskTensor`."""
    solid = sparsity != SPARSE_24
    yield mask("bitmask", out(solid=solid), in_(8, 1, solid=solid))
    yield metadata("shape", fixed(2), dtypes=("I64",), view=View.SQUEEZED)
    if solid:
        yield metadata("row_offsets", out(solid=True), dtypes=("I64",))


def _marlin(weights: Quantizer) -> Iterator[ParameterSpec]:
    """Tiles of 64 rows and 32 columns, of which half are stored, with 2 bits of place for each that is."""
    yield packed("weight_packed", in_(32, 1), out(64, 32 * weights.bits), dtypes=("I32",))
    yield mask("meta", in_(32, 1), out(64, 128), dtypes=("I16",))
    columns = in_(weights.group) if weights.group is not None else fixed(1)
    yield group_scale("scale_packed", columns, out(64, 64), dtypes=("F16",))


def _scales(scheme: CompressedScheme) -> Iterator[ParameterSpec]:
    weights = scheme.weights
    if scheme.format not in SMALL_FLOATS:
        yield _scale(weights)
        return
    axes = _scale_axes(weights)
    if scheme.format == NVFP4:
        yield group_scale("weight_scale", *axes, dtypes=("F8_E4M3",), signed=False)
    else:
        yield power_scale("weight_scale", *axes)
    if weights.has_global_scale:
        yield global_scale("weight_global_scale", divides=True, shared=True)


def _scale(weights: Quantizer) -> ParameterSpec:
    match weights.strategy:
        case Strategy.TENSOR:
            return tensor_scale("weight_scale")
        case Strategy.CHANNEL:
            return channel_scale("weight_scale", out(), fixed(1), signed=not weights.is_float)
        case Strategy.BLOCK:
            return block_scale("weight_scale", *_scale_axes(weights))
        case _:
            return group_scale("weight_scale", *_scale_axes(weights), signed=not weights.is_float)


def _scale_axes(weights: Quantizer) -> tuple[Axis, Axis]:
    if weights.block is not None:
        return out(weights.block[0]), in_(weights.block[1])
    if weights.group is not None:
        return out(), in_(weights.group, whole=weights.orders_groups)
    return out(), fixed(1)


def _zero_point(scheme: CompressedScheme) -> Iterator[ParameterSpec]:
    """Source: compressed-tensors, `PACK_ZP_STRATS`: zero-points of channels and groups alone are packed."""
    weights = scheme.weights
    if scheme.format in SMALL_FLOATS:
        return
    dtypes = ("F8_E4M3",) if weights.is_float else ("I8",)
    rows, columns = _scale_axes(weights)
    required = not weights.symmetric
    if weights.strategy is Strategy.TENSOR:
        yield _tensor_zero_point("weight_zero_point", required)
    elif scheme.format in PLAIN_FORMATS or weights.block is not None:
        half = 1 << (weights.bits - 1)
        bounds = None if weights.is_float else (-half, half)
        yield zero_point("weight_zero_point", rows, columns, dtypes=dtypes, required=required, bounds=bounds)
    elif required:
        yield zero_point("weight_zero_point", out(*packing(weights.bits)), columns, dtypes=("I32",))


def _index(weights: Quantizer, geometry: Geometry) -> Iterator[ParameterSpec]:
    if weights.orders_groups and weights.group is not None:
        groups = in_(weights.group).entries(geometry.in_features)
        yield index("weight_g_idx", part(), in_(), bounds=(-1, groups))


def _activations(name: str, quantizer: Quantizer | None) -> Iterator[ParameterSpec]:
    """Stored scales and zero-points of activations. Source: compressed-tensors, `initialize_qparams`."""
    if quantizer is None or (quantizer.dynamic and not quantizer.has_global_scale):
        return
    if quantizer.has_global_scale:
        yield global_scale(f"{name}_global_scale", shared=name == "input")
        return
    required = not quantizer.symmetric
    if quantizer.strategy is Strategy.ATTN_HEAD:
        yield channel_scale(f"{name}_scale", out(), fixed(1), fixed(1), signed=False)
        dtypes = ("I8", "I16", "F8_E4M3", *FLOATS)
        yield zero_point(f"{name}_zero_point", out(), fixed(1), fixed(1), dtypes=dtypes, required=required)
        return
    yield tensor_scale(f"{name}_scale")
    yield _tensor_zero_point(f"{name}_zero_point", required)


def _tensor_zero_point(name: str, required: bool) -> ParameterSpec:
    dtypes = ("I8", "I16", "F8_E4M3", *FLOATS)
    return zero_point(name, part(), dtypes=dtypes, required=required, view=View.SQUEEZED)
