"""The shares that engines' fast kernels take.

Source: vLLM's `marlin_utils` (`verify_marlin_supports_shape`, `check_moe_marlin_supports_layer`, the types and groups
that Marlin computes), `cutlass_scaled_mm`, which else takes Triton's kernel, and `should_use_deepgemm_for_fp8_linear`.
"""

from qload.geometry import Kind
from qload.hookspecs import Tile
from qload_compressed_tensors.config import Strategy
from qload_compressed_tensors.formats import PACKED, PLAIN_FORMATS
from qload_compressed_tensors.quantizers import Quantizer
from qload_compressed_tensors.schemes import CompressedScheme

_GROUPS = (None, 32, 64, 128)
_SCALED = (Strategy.TENSOR, Strategy.CHANNEL)


def find_tile(scheme: CompressedScheme, kind: Kind) -> Tile | None:
    """The tile of weights in that scheme; None where no kernel is known to need one."""
    weights, inputs = scheme.weights, scheme.inputs
    if scheme.sparsity is not None:
        return None
    if scheme.format == PACKED and inputs is None and _is_for_marlin(weights):
        return Tile(128, 64, "Marlin") if kind is Kind.EXPERTS else Tile(64, 128, "Marlin")
    if scheme.format not in PLAIN_FORMATS or inputs is None or kind is Kind.EXPERTS or weights.bits != 8:
        return None
    if weights.strategy in _SCALED:
        return Tile(16, 16, "CUTLASS's scaled_mm")
    return Tile(64, 128, "DeepGEMM") if weights.is_float and weights.block == (128, 128) else None


def _is_for_marlin(weights: Quantizer) -> bool:
    bits = (4, 8) if weights.symmetric else (4,)
    return not weights.is_float and weights.bits in bits and weights.group in _GROUPS
