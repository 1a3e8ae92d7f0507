"""compressed-tensors: weights packed into words, or stored as int8 and fp8, with scales of every extent.

Source of the layout: the compressors of the compressed-tensors package (`pack_quantized`, `naive_quantized`).
Values are packed along the input features, zero-points along the output features; both are stored with half of
their range added.
"""

from collections.abc import Mapping
from typing import Any

from qload.declare import (
    ParameterSpec,
    View,
    block_scale,
    channel_scale,
    global_scale,
    group_scale,
    index,
    metadata,
    packed,
    tensor_scale,
    zero_point,
)
from qload.dtypes import FLOATS
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo
from qload.layout import Axis, fixed, in_, out, packing, part
from qload_compressed_tensors.auto_round import claim_auto_round
from qload_compressed_tensors.config import CompressedTensorsConfig, Strategy
from qload_compressed_tensors.presets import PRESETS
from qload_compressed_tensors.schemes import (
    MXFP4,
    MXFP8,
    NVFP4,
    PACKED,
    SMALL_FLOATS,
    CacheScheme,
    CompressedScheme,
    Quantizer,
    make_cache_scheme,
    make_scheme,
)


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="compressed-tensors: packed int, int8, fp8, nvfp4, mxfp4 and mxfp8 weights, quantized activations",
        config=CompressedTensorsConfig,
        capabilities=Capabilities(
            embedding=True,
            activations=True,
            kv_cache=True,
            quantize=True,
            tensor_parallel="whole groups, blocks and words; act-order keeps scales whole",
        ),
        runtime="qload_compressed_tensors.runtime",
        presets=PRESETS,
    )


def qload_claim(config: Mapping[str, Any]) -> Claim | None:
    """AutoRound stores some of its checkpoints as this format does, under its own name."""
    section = config.get("quantization_config")
    return claim_auto_round(section) if isinstance(section, Mapping) else None


def qload_scheme_for(config: CompressedTensorsConfig, module: ModuleInfo) -> CompressedScheme | CacheScheme | None:
    _check(config)
    if module.kind is Kind.KV_CACHE:
        return make_cache_scheme(config.kv_cache_scheme) if config.kv_cache_scheme is not None else None
    if config.ignores(module.names, module.classes):
        return None
    group = config.group_for(module.names, module.classes)
    return None if group is None else make_scheme(group, config.format)


def qload_create_weights(scheme: CompressedScheme | CacheScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    if isinstance(scheme, CacheScheme):
        return tensor_scale("k_scale"), tensor_scale("v_scale")
    weights = scheme.weights
    return (
        *_values(scheme),
        *_scales(scheme),
        *_zero_point(scheme),
        *_index(weights, geometry),
        *_inputs(scheme),
    )


def _check(config: CompressedTensorsConfig) -> None:
    sparsity = config.sparsity_config.format if config.sparsity_config is not None else "dense"
    if sparsity != "dense":
        raise ValueError(f"sparsity format {sparsity!r} is not supported")
    if config.transform_config:
        raise ValueError("transform_config is not supported")


def _values(scheme: CompressedScheme) -> tuple[ParameterSpec, ...]:
    weights = scheme.weights
    if scheme.format == PACKED:
        return (
            packed("weight_packed", out(), in_(*packing(weights.bits)), dtypes=("I32",)),
            metadata("weight_shape", fixed(2), dtypes=("I64", "I32")),
        )
    if scheme.format in (NVFP4, MXFP4):
        return (packed("weight_packed", out(), in_(2), dtypes=("U8",)),)
    dtype = "F8_E4M3" if weights.is_float else "I8"
    return (packed("weight_quantized", out(), in_(), dtypes=(dtype,), stored_as="weight"),)


def _scales(scheme: CompressedScheme) -> tuple[ParameterSpec, ...]:
    weights = scheme.weights
    if scheme.format in (MXFP4, MXFP8):
        return (group_scale("weight_scale", out(), in_(weights.group or 1), dtypes=("U8",)),)
    if scheme.format == NVFP4:
        scale = group_scale("weight_scale", out(), in_(weights.group or 1), dtypes=("F8_E4M3",))
        return scale, global_scale("weight_global_scale")
    return (_scale(weights),)


def _scale(weights: Quantizer) -> ParameterSpec:
    match weights.strategy:
        case Strategy.TENSOR:
            return tensor_scale("weight_scale")
        case Strategy.CHANNEL:
            return channel_scale("weight_scale", out(), fixed(1))
        case Strategy.BLOCK:
            return block_scale("weight_scale", *_scale_axes(weights))
        case _:
            return group_scale("weight_scale", *_scale_axes(weights))


def _scale_axes(weights: Quantizer) -> tuple[Axis, Axis]:
    if weights.block is not None:
        return out(weights.block[0]), in_(weights.block[1])
    if weights.group is not None:
        return out(), in_(weights.group, whole=weights.orders_groups)
    return out(), fixed(1)


def _zero_point(scheme: CompressedScheme) -> tuple[ParameterSpec, ...]:
    weights = scheme.weights
    required = not weights.symmetric
    if scheme.format in SMALL_FLOATS:
        return ()
    if weights.strategy is Strategy.TENSOR:
        return (_tensor_zero_point("weight_zero_point", required),)
    rows, columns = _scale_axes(weights)
    if scheme.format != PACKED:
        return (zero_point("weight_zero_point", rows, columns, dtypes=("I8",), required=required),)
    if weights.symmetric:
        return ()
    return (zero_point("weight_zero_point", out(*packing(weights.bits)), columns, dtypes=("I32",)),)


def _index(weights: Quantizer, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    if not weights.orders_groups or weights.group is None:
        return ()
    groups = in_(weights.group).entries(geometry.in_features)
    return (index("weight_g_idx", part(), in_(), bounds=(-1, groups)),)


def _inputs(scheme: CompressedScheme) -> tuple[ParameterSpec, ...]:
    inputs = scheme.inputs
    if inputs is not None and inputs.has_global_scale:
        return (global_scale("input_global_scale"),)
    if inputs is None or inputs.dynamic:
        return ()
    return tensor_scale("input_scale"), _tensor_zero_point("input_zero_point", not inputs.symmetric)


def _tensor_zero_point(name: str, required: bool) -> ParameterSpec:
    return zero_point(name, part(), dtypes=("I8", *FLOATS), required=required, view=View.SQUEEZED)
