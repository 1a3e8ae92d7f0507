"""AWQ: 4-bit values with zero-points and scales by group, in the layouts of three kernels.

gemm packs along the output features, in an order of its own, and stores the transpose; gemv packs along the input
features; gemv_fast interleaves four rows, and stores zero-points times scales, negated. Source of the layouts:
AutoAWQ's `WQLinear_GEMM`, `WQLinear_GEMV`, `WQLinear_GEMVFast` and `packing_utils`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qload.declare import ParameterSpec, group_scale, packed, zero_point
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo, SideFiles, Tile
from qload.layout import fixed, in_, out, packing
from qload_awq.auto_round import claim_auto_round
from qload_awq.config import AwqConfig

BITS = 4
GEMM, GEMV, GEMV_FAST = "gemm", "gemv", "gemv_fast"
MARLIN_GROUPS = (None, 32, 64, 128)
"""Those that Marlin computes. Source: vLLM's `marlin_utils`."""
STRIDE = 64
"""The columns of four rows that gemv_fast interleaves."""
LEAVES = frozenset({"qweight", "qzeros", "scales"})
"""The quant_method that AutoRound writes, and its names for this packing."""
SIDE_FILE = "quant_config.json"


@dataclass(frozen=True, slots=True)
class AwqScheme:
    """Group size, None for one group of all input features; and which of the layouts it is stored in."""

    group_size: int | None
    version: str = GEMM

    def __str__(self) -> str:
        group = f"group {self.group_size}" if self.group_size else "channel"
        return f"int{BITS} {group}" + ("" if self.version == GEMM else f" {self.version}")


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="4 bits by group; gemm, gemv and gemv_fast",
        config=AwqConfig,
        capabilities=Capabilities(
            embedding=True, tensor_parallel="whole groups and 8 rows; gemv: rows alone; gemv_fast: 4 rows alone"
        ),
        runtime="qload_awq.runtime",
        is_by_place=True,
        side_files=(SIDE_FILE, "quantize_config.json", "quantization_config.json"),
    )


def qload_claim(config: Mapping[str, Any], files: SideFiles) -> Claim | None:
    """AutoRound packs as AWQ and says so; checkpoints of the first tools have their config in a side file alone."""
    section = config.get("quantization_config")
    claimed = claim_auto_round(section) if isinstance(section, Mapping) else None
    if claimed is not None:
        return claimed
    side = files.read_json(SIDE_FILE)
    if side is None or not {"w_bit", "q_group_size"} <= side.keys():
        return None
    return Claim(10, side, SIDE_FILE)


def qload_scheme_for(config: AwqConfig, module: ModuleInfo) -> AwqScheme | None:
    if config.excludes(module.names) or not _is_quantized(module):
        return None
    if config.version not in (GEMM, GEMV, GEMV_FAST):
        raise ValueError(f"version {config.version!r} is not one of {GEMM}, {GEMV}, {GEMV_FAST}")
    if config.bits != BITS:
        raise ValueError(f"{config.bits} bits are not {BITS}")
    _check_groups(config, module)
    return AwqScheme(config.group_size if config.group_size > 0 else None, config.version)


def qload_create_weights(scheme: AwqScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    groups = in_(scheme.group_size) if scheme.group_size else fixed(1)
    word = packing(BITS)
    if scheme.version != GEMM:
        return _create_padded(scheme, geometry)
    return (
        packed("qweight", in_(), out(*word), dtypes=("I32",)),
        zero_point("qzeros", groups, out(*word), dtypes=("I32",)),
        group_scale("scales", groups, out()),
    )


def qload_tile(scheme: AwqScheme, kind: Kind) -> Tile | None:
    """Source: vLLM's `marlin_utils`, `verify_marlin_supports_shape` and `check_moe_marlin_supports_layer`."""
    if scheme.version != GEMM or scheme.group_size not in MARLIN_GROUPS:
        return None
    return Tile(128, 64, "Marlin") if kind is Kind.EXPERTS else Tile(64, 128, "Marlin")


def _is_quantized(module: ModuleInfo) -> bool:
    """The config names no modules: the checkpoint itself says which are quantized, where it stores them."""
    return module.stores(LEAVES, otherwise=module.kind is Kind.LINEAR)


def _create_padded(scheme: AwqScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    """Groups are padded to whole words, so that all inputs are one unit: no rank can hold some of them."""
    words = count_words(geometry.in_features, scheme.group_size or geometry.in_features)
    scales = in_(geometry.in_features, 8 * words)
    if scheme.version == GEMV:
        return (
            packed("qweight", out(), in_(*packing(BITS)), dtypes=("I32",)),
            zero_point("qzeros", out(), in_(geometry.in_features, words), dtypes=("I32",)),
            group_scale("scales", out(), scales),
        )
    return (
        packed("qweight", out(4), in_(STRIDE, STRIDE), dtypes=("I16",)),
        zero_point("qzeros", scales, out(), dtypes=("F16",)),
        group_scale("scales", scales, out()),
    )


def _check_groups(config: AwqConfig, module: ModuleInfo) -> None:
    """No group is short. Source: the assertions of AutoAWQ's `WQLinear_GEMM` and its like."""
    shape = module.tensors["qweight"].shape if "qweight" in module.tensors else ()
    if len(shape) != 2 or config.group_size < 0:
        return
    columns = {GEMM: shape[0], GEMV: 8 * shape[1], GEMV_FAST: shape[1]}[config.version]
    if columns % config.group_size:
        raise ValueError(f"group_size {config.group_size} does not divide the {columns} input features")


def count_words(columns: int, group: int) -> int:
    """The words of eight zero-points to a row, as AutoAWQ's `calculate_zeros_width` pads them."""
    multiple = max(1, 128 // group)
    words = -(-columns // (8 * group))
    return -(-words // multiple) * multiple
