"""AMD Quark: integers and floats of 2 to 8 bits, with scales of every extent, and quantized inputs.

Source of the layout: Quark's export to safetensors (`QParamsLinear`, `realquantizer.py`, `utils/pack.py`). Integers
that have scales by group are stored transposed, and packed along the output features; all others are packed along the
input features. Zero-points are packed as the values are, and stored also where all of them are zero.
"""

from dataclasses import replace

from qload.declare import (
    ParameterKind,
    ParameterSpec,
    View,
    block_scale,
    channel_scale,
    global_scale,
    group_scale,
    keep_together,
    packed,
    power_scale,
    tensor_scale,
    weight,
    zero_point,
)
from qload.dtypes import FLOATS, SCALE_DTYPES
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, MethodInfo, ModuleInfo, Tile
from qload.layout import Axis, Dim, in_, out, part
from qload_quark.config import LayerConfig, QuarkConfig
from qload_quark.schemes import (
    E8M0,
    CacheScheme,
    Extent,
    Quantizer,
    QuarkScheme,
    Scheme,
    make_cache_scheme,
    make_scheme,
)

SCALES = frozenset({"weight_scale", "output_scale", "input_scale"})


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="int and fp of 2 to 8 bits, mxfp4, mxfp6 and nvfp4; quantized inputs, outputs and caches",
        config=QuarkConfig,
        capabilities=Capabilities(
            embedding=True,
            activations=True,
            kv_cache=True,
            tensor_parallel="whole groups and blocks; 4-bit ints by group: 8 rows",
        ),
        runtime="qload_quark.runtime",
        is_by_place=True,
    )


def qload_scheme_for(config: QuarkConfig, module: ModuleInfo) -> Scheme | None:
    if module.kind is Kind.KV_CACHE:
        return _find_cache_scheme(config, module)
    layer = _choose(config, module)
    if layer is None:
        return None
    _check(config)
    reorder = config.export.pack_method == "reorder"
    scheme = make_scheme(layer, reorder=reorder, feeds_cache=config.feeds_cache(module.names))
    if module.kind is Kind.EMBEDDING and scheme is not None and scheme.outputs is not None:
        raise ValueError("the outputs of an embedding are quantized, which is not supported")
    if module.kind is Kind.EMBEDDING and module.stored and not module.stored & SCALES:
        return None
    return scheme


def qload_create_weights(scheme: Scheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    if isinstance(scheme, CacheScheme):
        return (*_states("k", scheme.keys), *_states("v", scheme.values))
    solid = _solid_dims(scheme)
    specs = (replace(spec, layout=spec.layout.solidify(*solid)) for spec in _declare(scheme, geometry))
    if scheme.inputs is None or scheme.inputs.group is None:
        return tuple(specs)
    return tuple(keep_together(spec, Dim.IN, scheme.inputs.group) for spec in specs)


def qload_tile(scheme: Scheme, kind: Kind) -> Tile | None:
    """Source: vLLM's `cutlass_scaled_mm`, which takes Triton's kernel for other shapes."""
    if isinstance(scheme, CacheScheme) or kind is Kind.EXPERTS or scheme.inputs is None or scheme.weights is None:
        return None
    is_scaled = all(
        each.number.bits == 8 and each.extent in (Extent.TENSOR, Extent.CHANNEL)
        for each in (scheme.weights, scheme.inputs)
    )
    return Tile(16, 16, "CUTLASS's scaled_mm") if is_scaled else None


def _find_cache_scheme(config: QuarkConfig, module: ModuleInfo) -> CacheScheme | None:
    if not config.kv_cache_post_rope:
        return None
    _check(config)
    layers = (config.cache_config([f"{name}.{last}" for name in module.names]) for last in ("k_proj", "v_proj"))
    return make_cache_scheme(*layers)


def _solid_dims(scheme: QuarkScheme) -> tuple[Dim, ...]:
    """Where outputs are quantized, they must be whole sums; and all of them there, where their scale is theirs."""
    if scheme.outputs is None:
        return ()
    return (Dim.IN, Dim.OUT) if scheme.outputs.dynamic else (Dim.IN,)


def _states(name: str, quantizer: Quantizer | None) -> tuple[ParameterSpec, ...]:
    """What the projection of keys or values stores for the cache."""
    specs = () if quantizer is None else _static(quantizer, name)
    return tuple(replace(spec, stored_as=f"{name}_proj.{spec.name.replace(name, 'output', 1)}") for spec in specs)


def _declare(scheme: QuarkScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    outer = (tensor_scale("weight_scale"),) if scheme.progressive else ()
    if scheme.weights is None:
        values: tuple[ParameterSpec, ...] = (weight("weight", out(), in_()),)
    else:
        values = _values(scheme, scheme.weights)
    if geometry.kind is Kind.EMBEDDING:
        return (*values, *outer)
    return (*values, *outer, *_inputs(scheme), *_outputs(scheme))


def _choose(config: QuarkConfig, module: ModuleInfo) -> LayerConfig | None:
    """A module's config: of its name, its class, or all; of one left alone, what is done to the cache.

    Embeddings are quantized only where a name or the class says so.
    """
    cache = config.cache_config(module.names)
    if config.excludes(module.names):
        return None if cache is None else LayerConfig(output_tensors=cache.output_tensors)
    named = cache or config.named_config(module.names) or config.typed_config(module.classes)
    if named is not None or "Linear" not in module.classes or module.kind is Kind.EMBEDDING:
        return named
    return config.global_quant_config


def _check(config: QuarkConfig) -> None:
    if config.export.weight_format != "real_quantized":
        raise ValueError(f"weight_format {config.export.weight_format!r} is not real_quantized")
    if config.softmax_quant_spec is not None:
        raise ValueError("softmax_quant_spec quantizes the attention's probabilities, which is not supported")
    for algorithm in config.algorithms:
        online = [key for key in ("r3", "r4", "online_r1_rotation") if algorithm.get(key)]
        if algorithm.get("name") == "rotation" and online:
            raise ValueError(f"inputs are rotated while computing ({online[0]}), which is not supported")


def _values(scheme: QuarkScheme, weights: Quantizer) -> tuple[ParameterSpec, ...]:
    number, suffix = weights.number, "_2" if scheme.progressive else ""
    axes = (in_(), out(*number.unit)) if is_transposed(weights) else (out(), in_(*number.unit))
    return (
        packed("weight_quantized", *axes, dtypes=(number.stored,), stored_as="weight"),
        *_scales(scheme, weights, f"weight_scale{suffix}"),
        *_zero_point(weights, f"weight_zero_point{suffix}"),
    )


def is_transposed(weights: Quantizer) -> bool:
    """Whether [in, out] is stored. Source: `transpose` in Quark's `pack.py`, which does nothing for int3 and floats."""
    return weights.extent is Extent.GROUP and not weights.number.is_float and weights.dtype != "int3"


def _scales(scheme: QuarkScheme, weights: Quantizer, name: str) -> tuple[ParameterSpec, ...]:
    dtypes = ("U8",) if weights.scales is not None else SCALE_DTYPES
    if scheme.scales_scaled:
        scale = group_scale(name, *_scale_axes(weights), dtypes=("F8_E4M3",), signed=False)
        return scale, global_scale("weight_scale_2", dtypes=SCALE_DTYPES, divides=False)
    match weights.extent:
        case Extent.TENSOR:
            return (tensor_scale(name),)
        case Extent.CHANNEL:
            return (channel_scale(name, *_scale_axes(weights), signed=not weights.number.is_float),)
        case Extent.BLOCK:
            return (block_scale(name, *_scale_axes(weights)),)
        case Extent.GROUP if weights.scales == E8M0:
            return (power_scale(name, *_scale_axes(weights)),)
        case Extent.GROUP:
            return (group_scale(name, *_scale_axes(weights), dtypes=dtypes),)


def _scale_axes(weights: Quantizer) -> tuple[Axis, ...]:
    if weights.block is not None:
        return out(weights.block[0]), in_(weights.block[1])
    if weights.group is not None:
        # Source: Quark's `maybe_convert_and_transpose_scale`: the scales of all integers are, those of int3 too.
        return (out(), in_(weights.group)) if weights.number.is_float else (in_(weights.group), out())
    return (part(), in_()) if weights.by_columns else (out(),)


def _zero_point(weights: Quantizer, name: str) -> tuple[ParameterSpec, ...]:
    number = weights.number
    if number.is_float:
        return ()
    required = not (weights.symmetric and number.signed)
    if weights.has_float_zero:
        axes = (part(),) if weights.extent is Extent.TENSOR else _scale_axes(weights)
        return (zero_point(name, *axes, dtypes=(*FLOATS, "I32"), required=required, view=View.SQUEEZED),)
    if weights.extent is Extent.TENSOR:
        return (zero_point(name, part(), dtypes=(number.stored,), required=required, view=View.SQUEEZED),)
    view = View.SQUEEZED if weights.extent is Extent.CHANNEL else View.EXACT
    return (zero_point(name, *_zero_axes(weights), dtypes=(number.stored,), required=required, view=view),)


def _zero_axes(weights: Quantizer) -> tuple[Axis, ...]:
    """The zero-points are packed along the last axis that they have, as the values are."""
    logical, stored = weights.number.unit
    if weights.group is None:
        return (part(), in_(logical, stored)) if weights.by_columns else (out(logical, stored),)
    if is_transposed(weights):
        return in_(weights.group), out(logical, stored)
    return out(), in_(logical * weights.group, stored)


def _inputs(scheme: QuarkScheme) -> tuple[ParameterSpec, ...]:
    if scheme.inputs_scaled:
        return (global_scale("input_scale_2", dtypes=SCALE_DTYPES),)
    return () if scheme.inputs is None else _static(scheme.inputs, "input")


def _outputs(scheme: QuarkScheme) -> tuple[ParameterSpec, ...]:
    """What is said of the outputs; where the attention reads it, only that it may lie here."""
    if scheme.cache is not None:
        specs = _static(scheme.cache, "output")
        return tuple(replace(spec, kind=ParameterKind.METADATA, required=False, partial=True) for spec in specs)
    return () if scheme.outputs is None else _static(scheme.outputs, "output")


def _static(quantizer: Quantizer, name: str) -> tuple[ParameterSpec, ...]:
    """The scale and zero-point of activations; those that are chosen while computing are not stored."""
    if quantizer.dynamic:
        return ()
    scale = tensor_scale(f"{name}_scale", shared=name == "input")
    if quantizer.number.is_float:
        return (scale,)
    dtypes = (quantizer.number.stored, "I32", *FLOATS)
    required = not (quantizer.symmetric and quantizer.number.signed)
    return scale, zero_point(f"{name}_zero_point", part(), dtypes=dtypes, required=required, view=View.SQUEEZED)
