"""How a method declares the tensors of a module: one `ParameterSpec` for each.

A spec describes the whole tensor of a whole layer, never a rank's. The validator, the planner and the
layers read nothing else.
"""

from qload.declare.constructors import (
    bias,
    block_scale,
    channel_scale,
    document,
    global_scale,
    group_scale,
    index,
    mask,
    metadata,
    packed,
    power_scale,
    setting,
    table,
    tensor_scale,
    weight,
    zero_point,
)
from qload.declare.layers import complete, keep_together, stack_experts, striped
from qload.declare.specs import Blocks, Facts, OtherVersion, ParameterKind, ParameterSpec, View

__all__ = [
    "Blocks",
    "Facts",
    "OtherVersion",
    "ParameterKind",
    "ParameterSpec",
    "View",
    "bias",
    "block_scale",
    "channel_scale",
    "complete",
    "document",
    "global_scale",
    "group_scale",
    "index",
    "keep_together",
    "mask",
    "metadata",
    "packed",
    "power_scale",
    "setting",
    "stack_experts",
    "striped",
    "table",
    "tensor_scale",
    "weight",
    "zero_point",
]
