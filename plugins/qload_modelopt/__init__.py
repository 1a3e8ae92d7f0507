"""ModelOpt: fp8, nvfp4, mxfp4, mxfp8, int4 and int8 weights as NVIDIA's Model Optimizer exports them.

Source of the layout: ModelOpt's `_export_quantized_weight`, `to_quantized_weight` and `pack_int4_in_uint8`, and the
classes of its `qtensor`. Scales multiply, those of nvfp4 by `weight_scale_2` first; inputs are multiplied by
`pre_quant_scale`, where it is stored, before they are quantized. The scale of keys lies below `k_proj`, that of values
below `v_proj` (`postprocess_state_dict`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qload.configs import find_section
from qload.declare import (
    ParameterSpec,
    View,
    block_scale,
    channel_scale,
    global_scale,
    group_scale,
    metadata,
    packed,
    power_scale,
    tensor_scale,
    weight,
)
from qload.dtypes import SCALE_DTYPES
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo, SideFiles, Tile
from qload.layout import in_, out, part
from qload_modelopt.config import NESTED, SIDE_FILE, ModelOptConfig, merge
from qload_modelopt.schemes import MIXED, CacheScheme, Form, Inputs, ModelOptScheme, find_scheme, find_states

NAME = "modelopt"
LEAVES = frozenset({"weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale"})
CACHE_LEAVES = ("k_scale", "v_scale")
KEYS, VALUES = ("", "k_proj."), ("", "v_proj.")
"""Below what of an attention the scales of its keys and values lie."""
PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj"})
"""Those that may have scales of a cache, and the one that is fused with them and has to be treated alike."""


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="fp8, nvfp4, mxfp4, mxfp8, int4 AWQ and int8 SmoothQuant; quantized inputs",
        config=ModelOptConfig,
        capabilities=Capabilities(
            embedding=True, activations=True, kv_cache=True, tensor_parallel="whole groups and blocks; int4: 2 rows"
        ),
        runtime="qload_modelopt.runtime",
        is_by_place=True,
        side_files=(SIDE_FILE,),
    )


def qload_claim(config: Mapping[str, Any], files: SideFiles) -> Claim | None:
    """Its configs lie in config.json, also under names that tell its formats apart, in a side file, or in both."""
    section, side = find_section(config), files.read_json(SIDE_FILE)
    if side is not None and not isinstance(side.get(NESTED), Mapping):
        side = None
    if not isinstance(section, Mapping):
        return Claim(20, side, SIDE_FILE) if side is not None and section is None else None
    name = section.get("quant_method")
    if isinstance(name, str) and name.partition("_")[0] == NAME:
        if side is None:
            return Claim(20, section, alias=name)
        return Claim(20, merge(section, side), alias=name, beside={SIDE_FILE: merge(side, section)})
    return Claim(20, section) if name is None and isinstance(section.get(NESTED), Mapping) else None


def qload_scheme_for(config: ModelOptConfig, module: ModuleInfo) -> ModelOptScheme | CacheScheme | None:
    if module.kind is Kind.KV_CACHE:
        return _find_cache_scheme(config, module)
    cache = config.has_cache and module.name.rpartition(".")[2] in PROJECTIONS
    settings = None if config.excludes(module.names) else config.settings_for(module.names)
    if settings is None or not _is_quantized(config, module):
        return ModelOptScheme(Form.PLAIN, cache=True) if cache else None
    if settings.has_zero_point:
        raise ValueError("has_zero_point is true, and zero-points are not supported")
    return replace(find_scheme(settings.quant_algo, settings.group_size), cache=cache)


def qload_create_weights(scheme: ModelOptScheme | CacheScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    if isinstance(scheme, CacheScheme):
        places = zip(CACHE_LEAVES, (scheme.keys, scheme.values), strict=True)
        return tuple(tensor_scale(name, stored_as=f"{place}{name}") for name, place in places)
    # Under another name on the layer than on disk: what asks a layer for its weight means the dense one.
    values = _values(scheme.form)
    return (values, *_scales(scheme), *_inputs(scheme, geometry), *_cache(scheme))


def qload_tile(scheme: ModelOptScheme | CacheScheme, kind: Kind) -> Tile | None:
    """Source: vLLM's `cutlass_scaled_mm`, which else takes Triton's, and `should_use_deepgemm_for_fp8_linear`."""
    if isinstance(scheme, CacheScheme) or kind is Kind.EXPERTS or scheme.inputs is Inputs.NONE:
        return None
    if scheme.form in (Form.FP8_TENSOR, Form.FP8_CHANNEL):
        return Tile(16, 16, "CUTLASS's scaled_mm")
    return Tile(64, 128, "DeepGEMM") if scheme.form is Form.FP8_BLOCK and scheme.size == 128 else None


def _find_cache_scheme(config: ModelOptConfig, module: ModuleInfo) -> CacheScheme | None:
    """None where no scale is stored."""
    keys = next((place for place in KEYS if f"{place}k_scale" in module.stored), None)
    values = next((place for place in VALUES if f"{place}v_scale" in module.stored), None)
    if not config.kv_cache_quant_algo or (keys is None and values is None):
        return None
    if module.stored & {"k_proj.k_bias", "v_proj.v_bias"}:
        raise ValueError("keys and values are rounded around a bias (k_bias, v_bias), which is not supported")
    # One of the two is missing: it would lie where the other does.
    keys = ("k_proj." if values else "") if keys is None else keys
    values = ("v_proj." if keys else "") if values is None else values
    return CacheScheme(find_states(config.kv_cache_quant_algo), keys, values)


def _is_quantized(config: ModelOptConfig, module: ModuleInfo) -> bool:
    """The checkpoint itself says what is quantized, where its config does not list that: older exports leave modules
    out of `exclude_modules` that they did not quantize.
    """
    if module.stored and config.quant_algo != MIXED:
        return bool(module.stored & LEAVES)
    return module.kind in (Kind.LINEAR, Kind.LM_HEAD) or bool(module.stored & LEAVES)


def _values(form: Form) -> ParameterSpec:
    match form:
        case Form.PLAIN:
            return weight("weight", out(), in_())
        case Form.INT4:
            return packed("weight_quantized", out(2), in_(), dtypes=("U8",), stored_as="weight")
        case Form.NVFP4 | Form.MXFP4:
            return packed("weight_quantized", out(), in_(2), dtypes=("U8",), stored_as="weight")
        case _:
            dtype = "I8" if form is Form.INT8 else "F8_E4M3"
            return packed("weight_quantized", out(), in_(), dtypes=(dtype,), stored_as="weight")


def _scales(scheme: ModelOptScheme) -> tuple[ParameterSpec, ...]:
    size = scheme.size or 1
    match scheme.form:
        case Form.PLAIN:
            return ()
        case Form.FP8_TENSOR:
            return (tensor_scale("weight_scale"),)
        case Form.FP8_CHANNEL | Form.INT8:
            return (channel_scale("weight_scale", out(), signed=scheme.form is Form.INT8),)
        case Form.FP8_BLOCK:
            # On disk with a dimension of 1 after each, where the quantizer had the block's own.
            return (block_scale("weight_scale", out(size), in_(size), view=View.SQUEEZED),)
        case Form.INT4:
            scale = group_scale("weight_scale", out(), in_(size))
            return (scale, tensor_scale("weight_scale_2")) if scheme.double else (scale,)
        case Form.NVFP4:
            scale = group_scale("weight_scale", out(), in_(size), dtypes=("F8_E4M3",), signed=False)
            return scale, global_scale("weight_scale_2", divides=False, shared=True)
        case _:
            return (power_scale("weight_scale", out(), in_(size)),)


def _inputs(scheme: ModelOptScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    """A table has inputs only where a head is tied to it."""
    specs = [channel_scale("pre_quant_scale", part(), in_(), required=False)] if scheme.smooth else []
    if scheme.inputs.may_have_scale:
        optional = scheme.inputs is Inputs.FP8_TENSOR or geometry.kind is Kind.EMBEDDING
        specs.append(tensor_scale("input_scale", required=not optional, shared=True))
    return tuple(specs)


def _cache(scheme: ModelOptScheme) -> tuple[ParameterSpec, ...]:
    """Scales that lie here, and that the attention reads."""
    if not scheme.cache:
        return ()
    return tuple(metadata(name, part(), dtypes=SCALE_DTYPES, view=View.SQUEEZED, partial=True) for name in CACHE_LEAVES)
