"""fp8: weights stored as E4M3, with a scale for each block of rows and columns, or for the whole tensor.

Source of the layout: transformers' fine-grained fp8 (`weight_scale_inv`, by which weights are multiplied, and
`activation_scale`), vLLM's static and dynamic fp8 (`weight_scale`, `input_scale`), and GPTQModel's fp8, which divides
by `weight_scale_inv` and says so with `weight_scale_semantics: inverse`. Scales of keys and values below an
attention: vLLM's `BaseKVCacheMethod` and `maybe_remap_kv_scale_name`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qload.declare import ParameterSpec, block_scale, packed, tensor_scale
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo, Tile
from qload.layout import in_, out
from qload_fp8.auto_round import claim_auto_round
from qload_fp8.config import Fp8Config

SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")
SCALE_INV = "weight_scale_inv"
CACHE_SCALES = ("kv_scale", "k_scale", "v_scale")
"""Of keys and values alike, as the first exporters store it, or of each."""
SCALES = frozenset({SCALE_INV, "weight_scale"})


@dataclass(frozen=True, slots=True)
class Fp8Scheme:
    """Rows and columns to a scale, None for one scale; whether it divides; and how inputs are quantized.

    `inputs` is static, dynamic or none. With `is_finegrained`, scales by tensor have the names of those by block.
    """

    block: tuple[int, int] | None
    divides: bool
    inputs: str
    is_finegrained: bool = False

    def __str__(self) -> str:
        extent = "block {}x{}".format(*self.block) if self.block is not None else "tensor"
        words = [extent, *(["inverse"] if self.divides else [])]
        return " ".join(words) + ("" if self.inputs == "none" else f", inputs {self.inputs}")


@dataclass(frozen=True, slots=True)
class CacheScheme:
    """The names of the scales that are stored below an attention for its keys and values."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return "kv cache"


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="fp8 by block or tensor, with scales that multiply or divide; fp8 inputs",
        config=Fp8Config,
        capabilities=Capabilities(
            embedding=True, activations=True, kv_cache="loaded", quantize=True, tensor_parallel="whole blocks"
        ),
        runtime="qload_fp8.runtime",
        is_by_place=True,
        side_files=("quantize_config.json", "quantization_config.json"),
        presets={"fp8": {"weight_block_size": [128, 128], "activation_scheme": "dynamic"}},
    )


def qload_claim(config: Mapping[str, Any]) -> Claim | None:
    """AutoRound stores fp8 by blocks as this format does, under its own name."""
    section = config.get("quantization_config")
    return claim_auto_round(section) if isinstance(section, Mapping) else None


def qload_scheme_for(config: Fp8Config, module: ModuleInfo) -> Fp8Scheme | CacheScheme | None:
    if module.kind is Kind.KV_CACHE:
        return _find_cache(module)
    if config.excludes(module.names) or not _is_quantized(module):
        return None
    by_tensor = config.weight_block_size is None
    return Fp8Scheme(
        config.weight_block_size,
        config.weight_scale_semantics == "inverse",
        config.inputs,
        is_finegrained=by_tensor and SCALE_INV in module.stored,
    )


def qload_create_weights(scheme: Fp8Scheme | CacheScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    if isinstance(scheme, CacheScheme):
        return tuple(tensor_scale(name) for name in scheme.names)
    # Under another name on the layer than on disk: what asks a layer for its weight means the dense one.
    values = packed("weight_quantized", out(), in_(), dtypes=("F8_E4M3",), stored_as="weight")
    if scheme.block is not None:
        rows, columns = scheme.block
        return values, block_scale(SCALE_INV, out(rows), in_(columns), dtypes=SCALE_DTYPES)
    names = (SCALE_INV, "activation_scale") if scheme.is_finegrained else ("weight_scale", "input_scale")
    scales = [tensor_scale("weight_scale", stored_as=names[0])]
    if scheme.inputs == "static" and geometry.kind is not Kind.EMBEDDING:
        scales.append(tensor_scale("input_scale", stored_as=names[1]))
    return values, *scales


def qload_tile(scheme: Fp8Scheme | CacheScheme, kind: Kind) -> Tile | None:
    """Source: vLLM's `should_use_deepgemm_for_fp8_linear`, and `cutlass_scaled_mm`, which else takes Triton's."""
    if isinstance(scheme, CacheScheme) or kind is Kind.EXPERTS or scheme.divides or scheme.inputs == "none":
        return None
    if scheme.block is None:
        return Tile(16, 16, "CUTLASS's scaled_mm")
    return Tile(64, 128, "DeepGEMM") if scheme.block == (128, 128) else None


def _find_cache(module: ModuleInfo) -> CacheScheme | None:
    """What the checkpoint stores for the attention: both scales, where it stores one of them."""
    shared, *each = CACHE_SCALES
    if shared in module.stored:
        return CacheScheme((shared,))
    return None if module.stored.isdisjoint(each) else CacheScheme(tuple(each))


def _is_quantized(module: ModuleInfo) -> bool:
    """The config names what is left alone: of the rest the checkpoint itself says which is quantized."""
    return module.stores(SCALES, otherwise=module.kind is Kind.LINEAR)
