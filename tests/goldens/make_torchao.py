"""Makes torchao.safetensors: weights of every tensor class that torchao 0.18.0 (with torch 2.13.0) makes on a CPU.

For each case: the tensors and the metadata as `flatten_tensor_state_dict` gives them, what `dequantize` makes of the
weight, and, where inputs are quantized, an input and what its quantized tensor stands for. Run with torchao on the
path; the configs go into the metadata too.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchao.core.config import config_to_dict
from torchao.prototype.mx_formats.inference_workflow import MXDynamicActivationMXWeightConfig, NVFP4WeightOnlyConfig
from torchao.prototype.mx_formats.mx_tensor import MXTensor, QuantizeTensorToMXKwargs, ScaleCalculationMode
from torchao.prototype.mx_formats.nvfp4_tensor import (
    NVFP4Tensor,
    QuantizeTensorToNVFP4Kwargs,
    per_tensor_amax_to_scale,
)
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8Tensor,
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    PerRow,
    PerTensor,
    quantize_,
)
from torchao.quantization.granularity import PerBlock
from torchao.quantization.quantize_.common.quantize_tensor_kwargs import _choose_quant_func_and_quantize_tensor
from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    _apply_int8_act_asym_per_token_quant_dequant,
)

ROWS, COLUMNS = 5, 96
TALL, WIDE = 132, 160
"""More than one of the tiles in which scales are swizzled."""
E4M3, E5M2, FP4 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float4_e2m1fn_x2
INT4: torch.dtype = vars(torch)["int4"]


def make_weight(rows: int = ROWS, columns: int = COLUMNS, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    weight = torch.randn(rows, columns) * torch.rand(rows, 1).add(0.2)
    weight[3, :32] = 0
    return (weight + 0.3).to(dtype)


def quantize(config: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    module = nn.Linear(COLUMNS, ROWS, bias=False, dtype=dtype)
    module.weight = nn.Parameter(make_weight(dtype=dtype))
    quantize_(module, config)
    return module.weight.data


def quantize_input(weight: Any, x: Tensor) -> Tensor | None:
    """What the input is to torchao, as it says itself; None where it is not quantized."""
    seen: Tensor
    if getattr(weight, "activation_quantization", None) is not None:
        seen = _apply_int8_act_asym_per_token_quant_dequant(x)
        return seen
    kwargs = getattr(weight, "act_quant_kwargs", None)
    if kwargs is None:
        return None
    if isinstance(kwargs, QuantizeTensorToMXKwargs):
        quantized = MXTensor.to_mx(x, kwargs.elem_dtype, kwargs.block_size, kwargs.scaling_mode)
    elif isinstance(kwargs, QuantizeTensorToNVFP4Kwargs):
        dynamic = per_tensor_amax_to_scale(x.abs().max()) if kwargs.use_dynamic_per_tensor_scale else None
        quantized = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=dynamic or weight.act_per_tensor_scale)
    else:
        scales = (
            {"scale": weight.act_quant_scale, "zero_point": weight.act_quant_zero_point} if _is_static(weight) else {}
        )
        quantized = _choose_quant_func_and_quantize_tensor(x, kwargs, **scales)
    seen = quantized.dequantize()
    return seen


def _is_static(weight: Any) -> bool:
    return getattr(weight, "act_quant_scale", None) is not None


def float8(weight: PerRow | PerTensor | PerBlock, inputs: Any = None, **more: Any) -> Float8Tensor:
    kwargs = None if inputs is None else QuantizeTensorToFloat8Kwargs(granularity=inputs, **more)
    rows, columns = (64, 64) if isinstance(weight, PerBlock) else (ROWS, COLUMNS)
    return Float8Tensor.from_hp(make_weight(rows, columns), granularity=weight, act_quant_kwargs=kwargs)


def mx(
    element: Any, rounding: str, swizzled: bool = True, dtype: torch.dtype = torch.bfloat16, rows: int = ROWS
) -> MXTensor:
    mode = ScaleCalculationMode[rounding]
    kwargs = QuantizeTensorToMXKwargs(elem_dtype=element, scaling_mode=mode)
    weight = make_weight(rows, WIDE, dtype)
    return MXTensor.to_mx(weight, element, 32, mode, act_quant_kwargs=kwargs, is_swizzled_scales=swizzled)


def nvfp4(by_tensor: bool, static: bool = False, swizzled: bool = True, rows: int = ROWS) -> NVFP4Tensor:
    weight = make_weight(rows)
    return NVFP4Tensor.to_nvfp4(
        weight,
        per_tensor_scale=per_tensor_amax_to_scale(weight.abs().max()) if by_tensor or static else None,
        act_per_tensor_scale=torch.tensor(0.002) if static else None,
        is_swizzled_scales=swizzled,
        act_quant_kwargs=QuantizeTensorToNVFP4Kwargs(use_dynamic_per_tensor_scale=by_tensor),
    )


def int8(**more: Any) -> Int8DynamicActivationInt8WeightConfig:
    return Int8DynamicActivationInt8WeightConfig(**more)


def intx(
    bits: int, granularity: Any, mapping: MappingType = MappingType.SYMMETRIC, **more: Any
) -> IntxWeightOnlyConfig:
    dtype = getattr(torch, f"int{bits}")
    return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity, mapping_type=mapping, **more)


ASYMMETRIC = MappingType.ASYMMETRIC
CONFIGS: dict[str, Any] = {
    "int8-row": Int8WeightOnlyConfig(),
    "int8-tensor": Int8WeightOnlyConfig(granularity=PerTensor()),
    "int8-group": Int8WeightOnlyConfig(granularity=PerGroup(32)),
    "int8-column": Int8WeightOnlyConfig(granularity=PerRow(0)),
    "int8-dynamic": int8(),
    "int8-dynamic-asymmetric": int8(act_mapping_type=ASYMMETRIC, reduce_range=True),
    "int8-dynamic-tensor": int8(granularity=[PerTensor(), PerRow()]),
    "int8-static": Int8StaticActivationInt8WeightConfig(
        act_quant_scale=torch.tensor([[0.02]]), granularity=PerTensor()
    ),
    **{f"int{bits}-group": intx(bits, PerGroup(32), ASYMMETRIC) for bits in range(1, 9)},
    "int4-channel": intx(4, PerAxis(0)),
    "int4-float32-scales": intx(4, PerGroup(48), scale_dtype=torch.float32),
    "int8-float16-scales": intx(8, PerGroup(48), ASYMMETRIC, scale_dtype=torch.float16),
    "int4-dynamic": Int8DynamicActivationIntxWeightConfig(weight_dtype=INT4, weight_granularity=PerGroup(32)),
    "fp8-tensor": Float8WeightOnlyConfig(granularity=PerTensor()),
    "fp8-group": Float8WeightOnlyConfig(granularity=PerGroup(32), weight_dtype=E5M2),
    "mxfp8-config": MXDynamicActivationMXWeightConfig(),
    "mxfp4-config": MXDynamicActivationMXWeightConfig(activation_dtype=FP4, weight_dtype=FP4),
}
TENSORS: dict[str, Any] = {
    "fp8-dynamic-row": lambda: float8(PerRow(), PerRow()),
    "fp8-dynamic-tensor": lambda: float8(PerTensor(), PerTensor(), hp_value_lb=0.5, hp_value_ub=1.5),
    "fp8-dynamic-block": lambda: float8(PerBlock([32, 16]), PerBlock([1, 16])),
    "mxfp8-ceil-plain": lambda: mx(E4M3, "CEIL", swizzled=False),
    "mxfp8-e5m2-even": lambda: mx(E5M2, "EVEN"),
    "mxfp8-float32": lambda: mx(E4M3, "FLOOR", dtype=torch.float32),
    "mxfp6-e2m3": lambda: mx("fp6_e2m3", "FLOOR"),
    "mxfp6-e3m2": lambda: mx("fp6_e3m2", "RCEIL"),
    "mxfp4-even": lambda: mx(FP4, "EVEN", rows=TALL),
    "nvfp4-dynamic": lambda: nvfp4(True, rows=TALL),
    "nvfp4-static": lambda: nvfp4(False, static=True),
    "nvfp4-blocks-plain": lambda: nvfp4(False, swizzled=False),
    "nvfp4-config": lambda: quantize_nvfp4(),
}


def quantize_nvfp4() -> NVFP4Tensor:
    """As the config does it, which wants multiples of 16."""
    module = nn.Linear(COLUMNS, 16, bias=False, dtype=torch.bfloat16)
    module.weight = nn.Parameter(make_weight(16))
    quantize_(module, NVFP4WeightOnlyConfig())
    return module.weight.data


def make_input(columns: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(3, columns) + 0.2
    x[1] *= 30
    return x.to(dtype)


def main() -> None:
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name in (*CONFIGS, *TENSORS):
        weight = quantize(CONFIGS[name]) if name in CONFIGS else TENSORS[name]()
        flat, described = flatten_tensor_state_dict({f"{name}.weight": weight})
        tensors |= {**flat, f"{name}.expected": weight.dequantize()}
        metadata[f"{name}.weight"] = described[f"{name}.weight"]
        x = make_input(weight.shape[1], weight.dtype)
        seen = quantize_input(weight, x)
        if seen is not None:
            tensors |= {f"{name}.input": x, f"{name}.seen": seen}
        if name in CONFIGS and name != "int8-static":
            metadata[f"{name}.config"] = json.dumps(config_to_dict(CONFIGS[name]))
    save_file(tensors, Path(__file__).parent / "torchao.safetensors", metadata)


if __name__ == "__main__":
    main()
