"""mxfp4: stacks of experts as E2M1 values, in blocks of 32 that share a power of two.

Two values lie in a byte, the lower one first, and 16 bytes make a block. The experts' matrices are stored as
[out, in] in `<stack>_blocks` and `<stack>_scales`, also where the model has them transposed. Source of the layout:
transformers' `convert_moe_packed_tensors` and `Mxfp4Config`, and the blocks and scales of openai/gpt-oss.
"""

from dataclasses import dataclass

from qload.declare import ParameterSpec, packed, power_scale
from qload.geometry import Kind
from qload.hookspecs import Capabilities, MethodInfo, ModuleInfo
from qload.layout import fixed, in_, out
from qload_mxfp4.config import Mxfp4Config

BLOCK = 32
LEAVES = frozenset({"blocks", "scales"})


@dataclass(frozen=True, slots=True)
class Mxfp4Scheme:
    """E2M1 values with a scale for every `block` input features. The format has no other size."""

    block: int = BLOCK

    def __str__(self) -> str:
        return f"fp4 group {self.block}"


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="stacks of experts in 4-bit floats, by blocks of 32",
        config=Mxfp4Config,
        capabilities=Capabilities(embedding=True, tensor_parallel="whole blocks"),
        runtime="qload_mxfp4.runtime",
        is_by_place=True,
    )


def qload_scheme_for(config: Mxfp4Config, module: ModuleInfo) -> Mxfp4Scheme | None:
    return None if config.excludes(module.names) or not _is_quantized(module) else Mxfp4Scheme()


def qload_create_weights(scheme: Mxfp4Scheme) -> tuple[ParameterSpec, ...]:
    return (
        packed("blocks", out(), in_(scheme.block), fixed(scheme.block // 2), dtypes=("U8",)),
        power_scale("scales", out(), in_(scheme.block)),
    )


def _is_quantized(module: ModuleInfo) -> bool:
    """The config names what is left alone: of the rest the checkpoint itself says which is quantized."""
    return module.stores(LEAVES, otherwise=module.kind is Kind.LINEAR)
