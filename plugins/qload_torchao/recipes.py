"""How a weight is stored, as a config of torchao says it, where no metadata does.

Source: torchao's `quantization/quant_api.py` and `prototype/mx_formats/inference_workflow.py`: what the tensor of
each config is made with.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qload_torchao.config import Settings
from qload_torchao.inputs import PER_TOKEN, make_float8_inputs, make_int8_inputs, make_mx_inputs, read_intx_inputs
from qload_torchao.schemes import (
    FLOAT8,
    FLOAT8_DTYPES,
    FP4,
    GLOBAL_SCALE,
    INPUT_GLOBAL_SCALE,
    INPUT_SCALE,
    INT_DTYPES,
    MX_ELEMENTS,
    OPTIONAL,
    ZERO_POINT,
    Inputs,
    Making,
    Storage,
    TorchaoScheme,
    check_element,
    settle,
)
from qload_torchao.values import ROW, TENSOR, Block, read_flag, read_granularity, read_size, read_word

Fields = Mapping[str, Any]
Stored = frozenset[str] | None
"""The tensors of a weight besides its values and scales; None where nothing is stored yet."""

_ZEROS = frozenset({ZERO_POINT})
"""What the current torchao stores of integers, also where all are zero."""


def make_scheme(settings: Settings, stored: Stored) -> TorchaoScheme:
    """The scheme of a weight with these settings. Raises ValueError for what is not supported."""
    name, fields = settings
    if name not in _RECIPES:
        raise ValueError(f"the config {name[:60]!r} is not one of {', '.join(_RECIPES)}")
    scheme = _RECIPES[name](fields)
    return settle(scheme, scheme.tensors if stored is None else stored & OPTIONAL[scheme.storage])


def _blocks(value: object, default: Block) -> tuple[Block, Block]:
    """The blocks of inputs and of weights: two granularities, or one for both."""
    if isinstance(value, list) and len(value) == 2:
        inputs, weights = value
        return read_granularity(inputs, default), read_granularity(weights, default)
    block = read_granularity(value, default)
    return block, block


def _check_packing(value: object, usual: str, supported: str) -> None:
    packing = read_word(value, usual).upper()
    if packing != supported:
        raise ValueError(f"the packing format {packing[:60]!r} is for one device's kernel, and is not supported")


def _int8(fields: Fields) -> TorchaoScheme:
    group = fields.get("group_size")
    block = read_granularity(fields.get("granularity")) if group is None else (1, read_size(group))
    return TorchaoScheme(Storage.INT8, "int8", block, _ZEROS)


def _int8_inputs(fields: Fields) -> TorchaoScheme:
    of_inputs, of_weights = _blocks(fields.get("granularity"), ROW)
    mapping, reduced = read_word(fields.get("act_mapping_type"), "SYMMETRIC"), read_flag(fields.get("reduce_range"))
    inputs = make_int8_inputs(of_inputs, mapping, reduced)
    return TorchaoScheme(Storage.INT8, "int8", of_weights, _ZEROS, inputs, making=Making(reduced=reduced))


def _int8_static(fields: Fields) -> TorchaoScheme:
    return replace(_int8_inputs(fields), tensors=_ZEROS | {INPUT_SCALE})


def _intx(fields: Fields) -> TorchaoScheme:
    return _make_intx(fields, "", ROW, None)


def _intx_inputs(fields: Fields) -> TorchaoScheme:
    return _make_intx(fields, "weight_", (1, 32), read_intx_inputs(PER_TOKEN))


def _make_intx(fields: Fields, prefix: str, usual: Block, inputs: Inputs | None) -> TorchaoScheme:
    _check_packing(fields.get("intx_packing_format"), "UNPACKED_TO_INT8", "UNPACKED_TO_INT8")
    element = check_element(fields.get("weight_dtype"), "int8", INT_DTYPES)
    block = read_granularity(fields.get(f"{prefix}granularity"), usual)
    making = Making(
        mapping=read_word(fields.get(f"{prefix}mapping_type"), "SYMMETRIC"),
        algorithm=read_word(fields.get("intx_choose_qparams_algorithm"), "AFFINE").upper(),
        scale=read_word(fields.get(f"{prefix}scale_dtype"), "") or None,
    )
    return TorchaoScheme(Storage.INTX, element, block, _ZEROS, inputs, making=making)


def _int4(fields: Fields) -> TorchaoScheme:
    _check_packing(fields.get("int4_packing_format"), "PLAIN", "PLAIN")
    block = (1, read_size(fields.get("group_size", 128)))
    return TorchaoScheme(Storage.INT4, "int4", block, _ZEROS)


def _int4_inputs(fields: Fields) -> TorchaoScheme:
    _check_packing(fields.get("int4_packing_format"), "PRESHUFFLED", "PLAIN")
    inputs = make_float8_inputs("float8_e4m3fn", ROW, None, None)
    return TorchaoScheme(Storage.INT4, "int4", (1, 128), _ZEROS, inputs)


def _float8(fields: Fields) -> TorchaoScheme:
    block = read_granularity(fields.get("granularity"))
    return TorchaoScheme(Storage.FLOAT8, FLOAT8, block, making=_make_floats(fields))


def _float8_inputs(fields: Fields) -> TorchaoScheme:
    _check_packing(fields.get("packing_format"), "PLAIN", "PLAIN")
    of_inputs, of_weights = _blocks(fields.get("granularity"), TENSOR)
    element = read_word(fields.get("activation_dtype"), "float8_e4m3fn")
    bounds = fields.get("activation_value_lb"), fields.get("activation_value_ub")
    inputs = make_float8_inputs(element, of_inputs, *bounds)
    return TorchaoScheme(Storage.FLOAT8, FLOAT8, of_weights, inputs=inputs, making=_make_floats(fields))


def _make_floats(fields: Fields) -> Making:
    return Making(values=read_word(fields.get("weight_dtype"), FLOAT8_DTYPES[0]))


def _mx(fields: Fields) -> TorchaoScheme:
    size = read_size(fields.get("block_size", 32))
    usual = "float8_e4m3fn"
    element = check_element(fields.get("weight_dtype"), usual, MX_ELEMENTS)
    rounding = read_word(fields.get("scaling_mode"), "RCEIL")
    inputs = make_mx_inputs(read_word(fields.get("activation_dtype"), usual), size, rounding)
    return TorchaoScheme(Storage.MX, element, (1, size), inputs=inputs, swizzled=True)


def _nvfp4(fields: Fields) -> TorchaoScheme:
    usual = {GLOBAL_SCALE} if read_flag(fields.get("use_dynamic_per_tensor_scale", True)) else set()
    return TorchaoScheme(Storage.NVFP4, FP4, (1, 16), frozenset(usual), swizzled=True)


def _nvfp4_inputs(fields: Fields) -> TorchaoScheme:
    static = fields.get("step") is not None
    by_tensor = not static and read_flag(fields.get("use_dynamic_per_tensor_scale", True))
    usual = {GLOBAL_SCALE, INPUT_GLOBAL_SCALE} if static else {GLOBAL_SCALE} if by_tensor else set()
    inputs = Inputs(FP4, (1, 16), scaled_by_tensor=by_tensor)
    return TorchaoScheme(Storage.NVFP4, FP4, (1, 16), frozenset(usual), inputs, swizzled=True)


_RECIPES: Mapping[str, Callable[[Fields], TorchaoScheme]] = {
    "Int8WeightOnlyConfig": _int8,
    "Int8DynamicActivationInt8WeightConfig": _int8_inputs,
    "Int8StaticActivationInt8WeightConfig": _int8_static,
    "IntxWeightOnlyConfig": _intx,
    "Int8DynamicActivationIntxWeightConfig": _intx_inputs,
    "Int4WeightOnlyConfig": _int4,
    "Float8DynamicActivationInt4WeightConfig": _int4_inputs,
    "Float8WeightOnlyConfig": _float8,
    "Float8DynamicActivationFloat8WeightConfig": _float8_inputs,
    "MXDynamicActivationMXWeightConfig": _mx,
    "NVFP4WeightOnlyConfig": _nvfp4,
    "NVFP4DynamicActivationNVFP4WeightConfig": _nvfp4_inputs,
}
