"""How inputs are quantized, as a weight's metadata says it.

Source: torchao's `QuantizeTensorToInt8Kwargs`, `QuantizeTensorToFloat8Kwargs`, `QuantizeTensorToMXKwargs`,
`QuantizeTensorToNVFP4Kwargs`, and IntxUnpackedToInt8Tensor's `activation_quantization`.
"""

from collections.abc import Mapping
from typing import Any

from qload_torchao.schemes import (
    FLOAT8_DTYPES,
    FP4,
    MX_ELEMENTS,
    Inputs,
    Storage,
)
from qload_torchao.values import (
    ROW,
    TENSOR,
    Block,
    read_bound,
    read_flag,
    read_granularity,
    read_size,
    read_word,
    untag,
)

ROUNDINGS = ("FLOOR", "CEIL", "EVEN", "RCEIL")
MAPPINGS = ("SYMMETRIC", "ASYMMETRIC")
PER_TOKEN = "int8_asym_per_token"


def read_inputs(value: object, storage: Storage) -> Inputs | None:
    """What `act_quant_kwargs` of a weight stored so says. Raises ValueError for what is not supported."""
    if value is None:
        return None
    name, fields = untag(value)
    expected = {
        Storage.INT8: ("QuantizeTensorToInt8Kwargs", _int8),
        Storage.FLOAT8: ("QuantizeTensorToFloat8Kwargs", _float8),
        Storage.MX: ("QuantizeTensorToMXKwargs", _mx),
        Storage.NVFP4: ("QuantizeTensorToNVFP4Kwargs", _nvfp4),
    }
    if storage not in expected or name != expected[storage][0]:
        raise ValueError(f"inputs by {name!r} are not supported for {storage}")
    return expected[storage][1](fields)


def read_intx_inputs(value: object) -> Inputs | None:
    """What `activation_quantization` says. Raises ValueError for what is not supported."""
    if value is None:
        return None
    if read_word(value, "").lower() != PER_TOKEN:
        raise ValueError(f"activation_quantization {str(value)[:60]!r} is not {PER_TOKEN}")
    return Inputs("int8", symmetric=False)


def make_int8_inputs(block: Block, mapping: str, reduced: bool) -> Inputs:
    """Inputs as int8. Raises ValueError for what is not supported."""
    if block not in (ROW, TENSOR):
        raise ValueError(f"int8 inputs by blocks of {block} are not supported")
    if mapping not in MAPPINGS:
        raise ValueError(f"inputs of mapping type {mapping!r} are not supported")
    return Inputs("int8", block, mapping == "SYMMETRIC", reduced)


def make_float8_inputs(element: str, block: Block, low: object, high: object) -> Inputs:
    """Inputs as fp8. Raises ValueError for what is not supported."""
    if element not in FLOAT8_DTYPES or block[0] not in (1, None) or (block[0] is None and block != TENSOR):
        raise ValueError(f"inputs of {element} by blocks of {block} are not supported")
    return Inputs(element, block, bounds=(read_bound(low), read_bound(high)))


def make_mx_inputs(element: str, size: int, rounding: str) -> Inputs:
    """Inputs as microscaled floats. Raises ValueError for what is not supported."""
    if element not in MX_ELEMENTS or rounding not in ROUNDINGS:
        raise ValueError(f"inputs of {element} with scales rounded by {rounding} are not supported")
    return Inputs(element, (1, size), rounding=rounding)


def _int8(fields: Mapping[str, Any]) -> Inputs:
    mapping = read_word(fields.get("mapping_type"), "SYMMETRIC")
    block, reduced = read_granularity(fields.get("granularity")), read_flag(fields.get("reduce_range"))
    return make_int8_inputs(block, mapping, reduced)


def _float8(fields: Mapping[str, Any]) -> Inputs:
    element = read_word(fields.get("float8_dtype"), "float8_e4m3fn")
    block = read_granularity(fields.get("granularity"))
    return make_float8_inputs(element, block, fields.get("hp_value_lb"), fields.get("hp_value_ub"))


def _mx(fields: Mapping[str, Any]) -> Inputs:
    element = read_word(fields.get("elem_dtype"), "float8_e4m3fn")
    rounding = read_word(fields.get("scaling_mode"), "FLOOR")
    return make_mx_inputs(element, read_size(fields.get("block_size", 32)), rounding)


def _nvfp4(fields: Mapping[str, Any]) -> Inputs:
    if fields.get("block_size", 16) != 16:
        raise ValueError("NVFP4 inputs by blocks other than 16 are not supported")
    return Inputs(FP4, (1, 16), scaled_by_tensor=read_flag(fields.get("use_dynamic_per_tensor_scale")))
