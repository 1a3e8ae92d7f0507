"""AWQ: 4-bit values packed along the output features in an order of their own, stored transposed.

Source of the layout: AutoAWQ's `WQLinear_GEMM` and `packing_utils`. Zero-points are stored as they are.
"""

from dataclasses import dataclass

from qload.declare import ParameterSpec, group_scale, packed, zero_point
from qload.geometry import Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo, SideFiles
from qload.layout import fixed, in_, out, packing
from qload_awq.config import AwqConfig

BITS = 4
LEAVES = frozenset({"qweight", "qzeros", "scales"})
SIDE_FILE = "quant_config.json"


@dataclass(frozen=True, slots=True)
class AwqScheme:
    """Group size; None is one group of all input features."""

    group_size: int | None

    def __str__(self) -> str:
        return f"int{BITS} " + (f"group {self.group_size}" if self.group_size else "channel")


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="AWQ, gemm version; 4 bits",
        config=AwqConfig,
        capabilities=Capabilities(embedding=True, tensor_parallel="whole groups, and eight rows"),
        runtime="qload_awq.runtime",
    )


def qload_claim(files: SideFiles) -> Claim | None:
    """Checkpoints of the first tools have their config in a side file alone."""
    side = files.read_json(SIDE_FILE)
    if side is None or not {"w_bit", "q_group_size"} <= side.keys():
        return None
    return Claim(10, side, SIDE_FILE)


def qload_scheme_for(config: AwqConfig, module: ModuleInfo) -> AwqScheme | None:
    if config.excludes(module.names) or not _is_quantized(module):
        return None
    if config.version != "gemm":
        raise ValueError(f"version {config.version!r} is not gemm")
    if config.bits != BITS:
        raise ValueError(f"{config.bits} bits are not {BITS}")
    return AwqScheme(config.group_size if config.group_size > 0 else None)


def qload_create_weights(scheme: AwqScheme) -> tuple[ParameterSpec, ...]:
    groups = in_(scheme.group_size) if scheme.group_size else fixed(1)
    word = packing(BITS)
    return (
        packed("qweight", in_(), out(*word), dtypes=("I32",)),
        zero_point("qzeros", groups, out(*word), dtypes=("I32",)),
        group_scale("scales", groups, out()),
    )


def _is_quantized(module: ModuleInfo) -> bool:
    """The config names no modules: the checkpoint itself says which are quantized, where it stores them."""
    if module.stored:
        return bool(module.stored & LEAVES)
    return module.kind is Kind.LINEAR
