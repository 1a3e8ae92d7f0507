"""fp8: weights stored as E4M3, with a scale for each block of rows and columns, or for the whole tensor.

Source of the layout: transformers' fine-grained fp8 (`weight_scale_inv`, by which weights are multiplied), vLLM's
static and dynamic fp8 (`weight_scale`, `input_scale`), and GPTQModel's fp8, which divides by `weight_scale_inv`
and says so with `weight_scale_semantics: inverse`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qload.declare import ParameterSpec, block_scale, packed, tensor_scale
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo
from qload.layout import in_, out
from qload_fp8.config import Fp8Config

SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")
AUTO_ROUND = "auto-round"
"""The quant_method that AutoRound writes."""
SCALES = frozenset({"weight_scale_inv", "weight_scale"})


@dataclass(frozen=True, slots=True)
class Fp8Scheme:
    """Rows and columns to a scale, None for one scale; whether it divides; and how inputs are quantized.

    `inputs` is static, dynamic or none.
    """

    block: tuple[int, int] | None
    divides: bool
    inputs: str

    def __str__(self) -> str:
        extent = "block {}x{}".format(*self.block) if self.block is not None else "tensor"
        words = [extent, *(["inverse"] if self.divides else [])]
        return " ".join(words) + ("" if self.inputs == "none" else f", inputs {self.inputs}")


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="fp8 by block or tensor, with scales that multiply or divide; fp8 inputs",
        config=Fp8Config,
        capabilities=Capabilities(embedding=True, activations=True, quantize=True, tensor_parallel="whole blocks"),
        runtime="qload_fp8.runtime",
        presets={"fp8": {"weight_block_size": [128, 128], "activation_scheme": "dynamic"}},
    )


def qload_claim(config: Mapping[str, Any]) -> Claim | None:
    """AutoRound stores fp8 by blocks as this format does, under its own name.

    Source: `FP8BlockQLinear` of its `export_to_fp8.py`.
    """
    section = config.get("quantization_config")
    if not isinstance(section, Mapping) or not _is_auto_round(section):
        return None
    inputs = {"activation_scheme": "dynamic"} if section.get("act_bits") == 8 else {}
    extra = section.get("extra_config")
    left_out = [name for name, entry in extra.items() if _is_left_out(entry)] if isinstance(extra, Mapping) else []
    settings = {"weight_block_size": section["group_size"], "modules_to_not_convert": left_out}
    return Claim(20, {**settings, **inputs}, alias=AUTO_ROUND)


def _is_auto_round(section: Mapping[str, Any]) -> bool:
    by_block = isinstance(section.get("group_size"), list) and section.get("bits") == 8
    is_e4m3 = str(section.get("data_type")).startswith("fp") and section.get("fmt", "e4m3") == "e4m3"
    return section.get("quant_method") == AUTO_ROUND and by_block and is_e4m3


def _is_left_out(entry: object) -> bool:
    return isinstance(entry, Mapping) and entry.get("bits") in (16, 32)


def qload_scheme_for(config: Fp8Config, module: ModuleInfo) -> Fp8Scheme | None:
    if config.excludes(module.names) or not _is_quantized(module):
        return None
    return Fp8Scheme(config.weight_block_size, config.weight_scale_semantics == "inverse", config.inputs)


def qload_create_weights(scheme: Fp8Scheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    # Under another name on the layer than on disk: what asks a layer for its weight means the dense one.
    values = packed("weight_quantized", out(), in_(), dtypes=("F8_E4M3",), stored_as="weight")
    if scheme.block is not None:
        rows, columns = scheme.block
        return values, block_scale("weight_scale_inv", out(rows), in_(columns), dtypes=SCALE_DTYPES)
    scales = [tensor_scale("weight_scale")]
    if scheme.inputs == "static" and geometry.kind is not Kind.EMBEDDING:
        scales.append(tensor_scale("input_scale"))
    return values, *scales


def _is_quantized(module: ModuleInfo) -> bool:
    """The config names what is left alone: of the rest the checkpoint itself says which is quantized."""
    return module.stores(SCALES, otherwise=module.kind is Kind.LINEAR)
