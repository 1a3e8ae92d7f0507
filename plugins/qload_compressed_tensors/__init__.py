"""compressed-tensors: weights packed into words, or stored as int8 and fp8, with scales of every extent.

Source of the layout: the compressors of the compressed-tensors package (`pack_quantized`, `naive_quantized`).
Values are packed along the input features, zero-points along the output features; both are stored with half of
their range added.
"""

from collections.abc import Mapping
from typing import Any

from qload.catalogue import Rule
from qload.declare import ParameterSpec
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo, Tile
from qload_compressed_tensors.auto_round import claim_auto_round
from qload_compressed_tensors.config import CompressedTensorsConfig
from qload_compressed_tensors.declarations import declare_cache, declare_sparse, declare_weight
from qload_compressed_tensors.kernels import find_tile
from qload_compressed_tensors.presets import PRESETS
from qload_compressed_tensors.rules import RULES
from qload_compressed_tensors.schemes import (
    CacheScheme,
    CompressedScheme,
    Scheme,
    SparseScheme,
    check_sparsity,
    make_cache_scheme,
    make_scheme,
)


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="int, fp8, nvfp4, mxfp4, mxfp6 and mxfp8; sparse and marlin-24; quantized inputs, outputs and caches",
        config=CompressedTensorsConfig,
        capabilities=Capabilities(
            embedding=True,
            activations=True,
            kv_cache=True,
            quantize=True,
            tensor_parallel="whole groups, blocks and words; sparse-bitmask: nowhere; act-order keeps scales whole",
        ),
        runtime="qload_compressed_tensors.runtime",
        is_by_place=True,
        side_files=("quantization_config.json",),
        presets=PRESETS,
    )


def qload_claim(config: Mapping[str, Any]) -> Claim | None:
    """AutoRound stores some of its checkpoints as this format does, under its own name."""
    section = config.get("quantization_config")
    return claim_auto_round(section) if isinstance(section, Mapping) else None


def qload_rules() -> tuple[Rule, ...]:
    return RULES


def qload_scheme_for(config: CompressedTensorsConfig, module: ModuleInfo) -> Scheme | None:
    transforms = config.transform_config.computed if config.transform_config is not None else ()
    if transforms:
        raise ValueError(f"activations are transformed ({', '.join(transforms)}), which is not supported")
    if module.kind is Kind.KV_CACHE:
        return _find_cache_scheme(config, module)
    sparsity = _sparsity(config, module)
    scheme = None
    if not config.ignores(module.names, module.classes):
        group = config.group_for(module.names, module.classes)
        scheme = None if group is None else make_scheme(group, config.format, sparsity)
    return SparseScheme(sparsity) if scheme is None and sparsity is not None else scheme


def qload_create_weights(scheme: Scheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    if isinstance(scheme, CacheScheme):
        return tuple(declare_cache(scheme))
    if isinstance(scheme, SparseScheme):
        return tuple(declare_sparse(scheme))
    return tuple(declare_weight(scheme, geometry))


def qload_tile(scheme: Scheme, kind: Kind) -> Tile | None:
    return find_tile(scheme, kind) if isinstance(scheme, CompressedScheme) else None


def _find_cache_scheme(config: CompressedTensorsConfig, module: ModuleInfo) -> CacheScheme | None:
    """Groups can have attentions as targets; they round queries, too. Source: `initialize_hooked_attention`."""
    group = config.group_for(module.names, module.classes)
    is_own = group is not None and group.weights is None and group.input_activations is not None
    if is_own and not config.ignores(module.names, module.classes):
        raise ValueError("the queries of an attention are quantized, which is not supported")
    return make_cache_scheme(config.kv_cache_scheme) if config.kv_cache_scheme is not None else None


def _sparsity(config: CompressedTensorsConfig, module: ModuleInfo) -> str | None:
    written = config.sparsity_config
    return check_sparsity(written.format) if written is not None and written.applies(module) else None
