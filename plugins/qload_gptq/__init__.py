"""GPTQ: values packed along the input features, stored transposed, with scales and zero-points by group.

Source of the layout: GPTQModel's packing and dequantization (`gptqmodel/nn_modules/qlinear`), checked against
its own decoder. `checkpoint_format: gptq` (v1) stores zero-points less one, `gptq_v2` as they are.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qload.declare import OtherVersion, ParameterSpec, group_scale, index, packed, zero_point
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo, Parts, SideFiles, Tile
from qload.layout import fixed, in_, out, packing, part
from qload_gptq.auto_round import AUTO_ROUND, AUTO_ROUND_FIELDS, AUTO_ROUND_PACKINGS, translate_auto_round
from qload_gptq.config import GptqConfig

BITS = (2, 3, 4, 8)
LEAVES = frozenset({"qweight", "qzeros", "scales", "g_idx"})
SIDE_FILE = "quantize_config.json"
MARLIN_BITS, MARLIN_GROUPS = (4, 8), (None, 32, 64, 128)
"""What Marlin computes, of symmetric values. Source: vLLM's `marlin_utils`."""


@dataclass(frozen=True, slots=True)
class GptqScheme:
    """Bits, group size (None: one group), activation order, and whether zero-points are stored less one.

    With `is_symmetric`, every zero-point is half of the range.
    """

    bits: int
    group_size: int | None
    desc_act: bool
    less_one: bool
    is_symmetric: bool = False

    def __str__(self) -> str:
        group = f"group {self.group_size}" if self.group_size else "channel"
        return f"int{self.bits} {group}" + (" act-order" if self.desc_act else "")


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="2, 3, 4 and 8 bits by group, v1 and v2; activation order",
        config=GptqConfig,
        capabilities=Capabilities(
            embedding=True,
            parts=Parts.QUANTIZED,
            tensor_parallel="whole groups and words; act-order keeps scales whole",
        ),
        runtime="qload_gptq.runtime",
        is_by_place=True,
        side_files=(SIDE_FILE, "quantization_config.json"),
    )


def qload_claim(config: Mapping[str, Any], files: SideFiles) -> Claim | None:
    """AutoRound packs as GPTQ and says so; checkpoints of the first tools have their config in a side file alone."""
    section = config.get("quantization_config")
    if isinstance(section, Mapping) and section.get("packing_format") in AUTO_ROUND_PACKINGS:
        return Claim(20, translate_auto_round(section), alias=AUTO_ROUND, fields=tuple(AUTO_ROUND_FIELDS.split()))
    side = files.read_json(SIDE_FILE)
    if side is None or "bits" not in side or side.get("quant_method", "gptq") != "gptq":
        return None
    return Claim(10, side, SIDE_FILE)


def qload_scheme_for(config: GptqConfig, module: ModuleInfo) -> GptqScheme | None:
    if not _is_quantized(config, module):
        return None
    settings = config.settings_for(module.names)
    if settings is None:
        return None
    _check(config, settings.bits)
    return GptqScheme(
        bits=settings.bits,
        group_size=None if settings.group_size == -1 else settings.group_size,
        desc_act=settings.desc_act,
        less_one=config.checkpoint_format == "gptq",
        is_symmetric=settings.sym,
    )


def qload_create_weights(scheme: GptqScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    word = packing(scheme.bits)
    # With activation order a column's group can be any of the layer's, so that every rank needs all scales.
    groups = in_(scheme.group_size, whole=scheme.desc_act) if scheme.group_size else fixed(1)
    count = groups.entries(geometry.in_features) if scheme.group_size else 1
    return (
        packed("qweight", in_(*word), out(), dtypes=("I32",)),
        zero_point("qzeros", groups, out(*word), dtypes=("I32",), other=_other_version(scheme)),
        group_scale("scales", groups, out()),
        index("g_idx", part(), in_(), bounds=(0, count), required=scheme.desc_act),
    )


def qload_tile(scheme: GptqScheme, kind: Kind) -> Tile | None:
    """Source: vLLM's `marlin_utils`, `verify_marlin_supports_shape` and `check_moe_marlin_supports_layer`."""
    if not scheme.is_symmetric or scheme.bits not in MARLIN_BITS or scheme.group_size not in MARLIN_GROUPS:
        return None
    return Tile(128, 64, "Marlin") if kind is Kind.EXPERTS else Tile(64, 128, "Marlin")


def _other_version(scheme: GptqScheme) -> OtherVersion | None:
    """What the other version stores for half of the range, which all zero-points of a symmetric weight are."""
    if not scheme.is_symmetric:
        return None
    half = 1 << (scheme.bits - 1)
    wanted, other = (half - 1, half) if scheme.less_one else (half, half - 1)
    return OtherVersion(
        _repeat(other, scheme.bits),
        expected=f"{wanted}, for symmetric weights of {scheme.bits} bits",
        found=f"{other} throughout",
        remedy=f"correct checkpoint_format to {'gptq_v2' if scheme.less_one else 'gptq'}",
    )


def _repeat(value: int, bits: int) -> tuple[int, ...]:
    """The words that hold nothing but that value, until they are the same again."""
    count, words = packing(bits)
    whole = sum(value << bits * place for place in range(count))
    return struct.unpack(f"<{words}i", whole.to_bytes(4 * words, "little"))


def _is_quantized(config: GptqConfig, module: ModuleInfo) -> bool:
    """The config names no modules: the checkpoint itself says which are quantized, where it stores them."""
    is_head = module.kind is Kind.LM_HEAD
    is_named = config.lm_head if is_head else module.kind is Kind.LINEAR and config.is_in_block(module.names)
    return module.stores(LEAVES, otherwise=is_named)


def _check(config: GptqConfig, bits: int) -> None:
    if config.checkpoint_format not in ("gptq", "gptq_v2"):
        raise ValueError(f"checkpoint_format {config.checkpoint_format!r} is not gptq or gptq_v2")
    if bits not in BITS:
        raise ValueError(f"{bits} bits are not one of {', '.join(map(str, BITS))}")
    if config.pack_dtype != "int32":
        raise ValueError(f"pack_dtype {config.pack_dtype!r} is not int32")
