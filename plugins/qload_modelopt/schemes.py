"""What each of ModelOpt's algorithms does to a module, as a frozen value.

Source: ModelOpt's `process_layer_quant_config`, which names the algorithms (two of them in lower case), and
`get_quantization_format`, which says of what quantizers each is made. FP8_BLOCK_SCALES and the names with A16_MXFP4
and MXFP4_MXFP8 are those of TensorRT-LLM's `QuantAlgo` for the same layouts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any


class Form(StrEnum):
    """How values and scales are stored."""

    FP8_TENSOR = "fp8 tensor"
    FP8_CHANNEL = "fp8 channel"
    FP8_BLOCK = "fp8 block"
    INT8 = "int8 channel"
    INT4 = "int4 group"
    NVFP4 = "nvfp4 group"
    MXFP4 = "mxfp4 group"
    MXFP8 = "mxfp8 group"
    PLAIN = "unquantized"


class Inputs(StrEnum):
    """What inputs are quantized with."""

    NONE = "none"
    FP8 = "static fp8"
    FP8_TENSOR = "fp8 tensor"
    """Static where a scale is stored, else with the tensor's own: it was exported without calibration."""
    FP8_TOKEN = "dynamic fp8 token"
    FP8_GROUP = "dynamic fp8 group"
    INT8 = "static int8"
    NVFP4 = "dynamic nvfp4"
    MXFP4 = "dynamic mxfp4"
    MXFP8 = "dynamic mxfp8"

    @property
    def may_have_scale(self) -> bool:
        """Whether a scale of the whole tensor is stored for them, nvfp4's for the scales of groups."""
        return self in (Inputs.FP8, Inputs.FP8_TENSOR, Inputs.INT8, Inputs.NVFP4)


@dataclass(frozen=True, slots=True)
class ModelOptScheme:
    """How a module is stored; `size` is that of a group, or of both sides of a block.

    With `smooth` its inputs may be multiplied by a scale of their own, with `double` int4 weights were rounded to fp8
    too, and with `cache` scales of keys and values may be stored beside the projections that make them.
    """

    form: Form
    inputs: Inputs = Inputs.NONE
    size: int | None = None
    smooth: bool = False
    double: bool = False
    cache: bool = False

    def __str__(self) -> str:
        size = f" {self.size}x{self.size}" if self.form is Form.FP8_BLOCK else f" {self.size}" if self.size else ""
        inputs = "" if self.inputs is Inputs.NONE else f", inputs {self.inputs}"
        return f"{self.form}{size}{inputs}{', kv cache' if self.cache else ''}"


ALGORITHMS: dict[str, ModelOptScheme] = {
    "FP8": ModelOptScheme(Form.FP8_TENSOR, Inputs.FP8),
    "FP8_PER_CHANNEL_PER_TOKEN": ModelOptScheme(Form.FP8_CHANNEL, Inputs.FP8_TOKEN),
    "FP8_PB_WO": ModelOptScheme(Form.FP8_BLOCK, size=128),
    "FP8_PB_REAL": ModelOptScheme(Form.FP8_BLOCK, size=128),
    "FP8_BLOCK_SCALES": ModelOptScheme(Form.FP8_BLOCK, Inputs.FP8_GROUP, 128),
    "W8A16": ModelOptScheme(Form.INT8),
    "W8A8_SQ_PER_CHANNEL": ModelOptScheme(Form.INT8, Inputs.INT8, smooth=True),
    "W4A16_AWQ": ModelOptScheme(Form.INT4, size=128, smooth=True),
    "W4A8_AWQ": ModelOptScheme(Form.INT4, Inputs.FP8, 128, smooth=True, double=True),
    "NVFP4": ModelOptScheme(Form.NVFP4, Inputs.NVFP4, 16),
    "NVFP4_AWQ": ModelOptScheme(Form.NVFP4, Inputs.NVFP4, 16, smooth=True),
    "W4A16_NVFP4": ModelOptScheme(Form.NVFP4, size=16),
    "W4A8_NVFP4_FP8": ModelOptScheme(Form.NVFP4, Inputs.FP8, 32),
    "MXFP4": ModelOptScheme(Form.MXFP4, Inputs.MXFP4, 32),
    "W4A16_MXFP4": ModelOptScheme(Form.MXFP4, size=32),
    "W4A8_MXFP4_FP8": ModelOptScheme(Form.MXFP4, Inputs.FP8_TENSOR, 32),
    "W4A8_MXFP4_MXFP8": ModelOptScheme(Form.MXFP4, Inputs.MXFP8, 32),
    "MXFP8": ModelOptScheme(Form.MXFP8, Inputs.MXFP8, 32),
}
MIXED = "MIXED_PRECISION"

OTHER_NAMES = {
    "FP8_PC_PT": "FP8_PER_CHANNEL_PER_TOKEN",
    "INT4_AWQ": "W4A16_AWQ",
    "INT8_SQ": "W8A8_SQ_PER_CHANNEL",
    "INT8_WO": "W8A16",
}
"""ModelOpt's names inside, of formats that its files name otherwise."""


class States(StrEnum):
    """What keys and values are rounded to."""

    FP8 = "fp8"
    INT8 = "int8"
    NVFP4 = "nvfp4"


@dataclass(frozen=True, slots=True)
class CacheScheme:
    """How keys and values are rounded, and below which modules of the attention their scales lie.

    They lie beside the projections, as ModelOpt's own export has them (`postprocess_state_dict`), or, with empty
    names, below the attention itself, as that for Megatron has.
    """

    states: States
    keys: str = ""
    values: str = ""

    def __str__(self) -> str:
        return f"kv cache static {self.states}"


def find_states(algorithm: str | Mapping[str, Any]) -> States:
    """What a cache is rounded to, by its algorithm's name or, as in config.json, its numbers.

    Source of the latter: ModelOpt's `convert_hf_quant_config_format`. Raises ValueError for another one.
    """
    name: object = algorithm
    if isinstance(algorithm, Mapping):
        name = _STATES.get((algorithm.get("type"), algorithm.get("num_bits")), str(dict(algorithm)))
    try:
        return States(str(name).lower())
    except ValueError as error:
        raise ValueError(f"a cache of {name} is not one of {', '.join(map(str.upper, States))}") from error


_STATES: Mapping[tuple[object, object], States] = {
    ("float", 8): States.FP8,
    ("int", 8): States.INT8,
    ("float", 4): States.NVFP4,
}


def find_scheme(algorithm: str, group_size: int | None) -> ModelOptScheme:
    """The scheme of an algorithm; `group_size` is what the config writes. Raises ValueError for another one."""
    scheme = ALGORITHMS.get(OTHER_NAMES.get(algorithm, algorithm))
    if scheme is None:
        raise ValueError(f"quant_algo {algorithm!r} is not one of {', '.join((*ALGORITHMS, MIXED))}")
    return replace(scheme, size=group_size) if scheme.size and group_size else scheme
