"""gguf: ggml's blocks, in files of its own format or in GPTQModel's safetensors.

Source of the layouts: gguf-py's `quants.py` and `constants.py`, and GPTQModel's `qlinear/gguf.py`, which stores rows of
blocks as `qweight`, each row padded to whole blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qload.declare import Blocks, ParameterSpec, metadata, packed, tensor_scale
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo, Parts, SideFiles
from qload.layout import fixed, in_, out
from qload_gguf.config import GgufConfig
from qload_gguf.types import BY_NAME

PACKED = "qweight"
"""The name that GPTQModel stores a module's blocks under."""
SIDE_FILE = "quantize_config.json"
SCALED = "NVFP4"
"""The type whose modules have a scale of their own beside them."""
_SKIPPED: Mapping[str, Any] = {r"-:.*\.(gate|router)$": {}}
"""The routers of mixtures of experts."""
_TYPED = {f"weight.{name.lower()}": name for name in BY_NAME}


@dataclass(frozen=True, slots=True)
class GgufScheme:
    """The type of a module's blocks, and the name that they are stored under."""

    type: str
    stored_as: str

    def __str__(self) -> str:
        return self.type


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="ggml's blocks: Q1_0 to Q8_0, K, IQ, TQ, MXFP4 and NVFP4; GGUF files and safetensors",
        config=GgufConfig,
        capabilities=Capabilities(
            embedding=True, parts=Parts.ANY, quantize=True, tensor_parallel="whole blocks of 32 to 256 columns"
        ),
        runtime="qload_gguf.runtime",
        is_by_place=True,
        side_files=(SIDE_FILE,),
        presets={name: {"bits": name, "dynamic": _SKIPPED} for name in ("q4_0", "q8_0")},
    )


def qload_claim(config: Mapping[str, Any], files: SideFiles) -> Claim | None:
    """GPTQModel writes its config into a side file, too."""
    side = files.read_json(SIDE_FILE) if not config.get("quantization_config") else None
    return Claim(10, side, SIDE_FILE) if side is not None and side.get("quant_method") == "gguf" else None


def qload_scheme_for(config: GgufConfig, module: ModuleInfo) -> GgufScheme | None:
    typed = sorted(module.stored & _TYPED.keys())
    if len(typed) > 1:
        raise ValueError(f"the weight is stored twice: {' and '.join(typed)}")
    if typed:
        return GgufScheme(_TYPED[typed[0]], typed[0])
    if not _is_quantized(config, module):
        return None
    name = config.type_for(module.names)
    return GgufScheme(name, PACKED) if name is not None else None


def qload_create_weights(scheme: GgufScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    block = BY_NAME[scheme.type]
    columns = in_(block.elements, block.nbytes, padded=True)
    scales = Blocks(block.nbytes, block.scales) if block.scales else None
    blocks = packed("weight_quantized", out(), columns, dtypes=("U8",), stored_as=scheme.stored_as, blocks=scales)
    if scheme.type != SCALED or geometry.kind is Kind.EMBEDDING:
        return (blocks,)
    scale = tensor_scale("weight_scale", dtypes=("F32",), stored_as="scale", required=False)
    return blocks, scale, metadata("input_scale", fixed(1), dtypes=("F32",))


def _is_quantized(config: GgufConfig, module: ModuleInfo) -> bool:
    """The config names no modules: the checkpoint itself says which are quantized, where it stores them."""
    is_named = module.kind is Kind.LINEAR or (module.kind is Kind.LM_HEAD and config.lm_head)
    return module.stores({PACKED}, otherwise=config.bits is not None and is_named)
