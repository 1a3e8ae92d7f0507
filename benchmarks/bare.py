"""torch's own low-bit kernels, bitsandbytes', and torchao's layers, called with nothing around them.

It is what a layer could cost. Weights are random, of the shape and the format that a checkpoint has. Inputs are
quantized before the clock starts.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from checkpoints import BLOCK, GROUP, NF4, NF4_GROUP, SCALE, make_floats
from torch import Tensor, nn
from torch.nn import functional as F

Call = Callable[[], object]
Make = Callable[[int, int, Tensor], Call]
"""Of rows, columns and an input [batch, columns] makes a call of the kernel."""
TILES = 8
"""Of columns that the CUDA kernel for 4 bits packs together."""
LEAST_ROWS = 32
"""With so many rows cuBLAS multiplies int8; a smaller batch is padded to it."""

ops = torch.ops.aten


def make_dense(rows: int, columns: int, x: Tensor) -> Call:
    weight = torch.randn(rows, columns, dtype=x.dtype, device=x.device) / 50
    return lambda: F.linear(x, weight)


def make_int4(rows: int, columns: int, x: Tensor) -> Call:
    scales = torch.full((columns // GROUP, rows, 2), SCALE, dtype=x.dtype, device=x.device)
    if x.is_cuda:
        pairs = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device=x.device)
        tiled = ops._convert_weight_to_int4pack(pairs, TILES)
        return lambda: ops._weight_int4pack_mm(x, tiled, GROUP, scales)
    packed = ops._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (rows, columns), dtype=torch.int32), 1)
    return lambda: ops._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales)


def make_int8(rows: int, columns: int, x: Tensor) -> Call:
    weight = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=x.device)
    scales = torch.full((rows,), SCALE, dtype=x.dtype, device=x.device)
    return lambda: ops._weight_int8pack_mm(x, weight, scales)


def make_w8a8(rows: int, columns: int, x: Tensor) -> Call:
    count = max(len(x), LEAST_ROWS) if x.is_cuda else len(x)
    inputs = torch.randint(-127, 128, (count, columns), dtype=torch.int8, device=x.device)
    weight = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=x.device)
    return lambda: torch._int_mm(inputs, weight.t())


def make_fp8(rows: int, columns: int, x: Tensor) -> Call:
    scales = torch.ones(len(x), 1, device=x.device), torch.ones(1, rows, device=x.device)
    return scaled(rows, columns, x, *scales)


def make_fp8_blocks(rows: int, columns: int, x: Tensor) -> Call:
    """Inputs have a scale for each 128 columns, stored by columns; the weight one for each block."""
    inputs = torch.ones(columns // BLOCK, len(x), device=x.device).t()
    weight = torch.ones(rows // BLOCK, columns // BLOCK, device=x.device).t()
    return scaled(rows, columns, x, inputs, weight)


def scaled(rows: int, columns: int, x: Tensor, input_scales: Tensor, weight_scales: Tensor) -> Call:
    inputs, weight = x.to(torch.float8_e4m3fn), make_floats(rows, columns).to(x.device)
    return lambda: torch._scaled_mm(inputs, weight.t(), input_scales, weight_scales, out_dtype=x.dtype)


def make_nf4(rows: int, columns: int, x: Tensor) -> Call:
    """Scales lie by groups, in bfloat16, on CPUs, and by rows, in float32, on GPUs."""
    importlib.import_module("bitsandbytes")
    operators, shape = torch.ops.bitsandbytes, (rows, columns)
    codes = torch.randint(0, 256, (rows * columns // 2, 1), dtype=torch.uint8, device=x.device)
    scales = torch.full((rows * columns // NF4_GROUP,), SCALE, device=x.device)
    if x.is_cuda:
        return lambda: operators.gemm_4bit(x, codes, shape, scales, NF4_GROUP, "nf4")
    packed, by_groups = codes.view(rows, -1), scales.to(torch.bfloat16).view(-1, rows)
    return lambda: operators.gemv_4bit(x, packed, shape, by_groups, NF4, NF4_GROUP)


BARE: dict[str, tuple[str, Make]] = {
    "int4 g128": ("_weight_int4pack_mm", make_int4),
    "int8": ("_weight_int8pack_mm", make_int8),
    "w8a8 int8": ("_int_mm", make_w8a8),
    "fp8": ("_scaled_mm", make_fp8),
    "block fp8": ("_scaled_mm", make_fp8_blocks),
    "nf4": ("bitsandbytes::gemv_4bit", make_nf4),
}
"""The name of the kernel for each format that there is one for: torch's, or bitsandbytes' own."""


def configure_torchao(form: str, device: str) -> Any:
    """torchao's config for the format; LookupError where it has none."""
    torchao = importlib.import_module("torchao.quantization")
    match form:
        case "int4 g128" if device.startswith("cuda"):
            return torchao.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
        case "int4 g128":
            return torchao.Int4WeightOnlyConfig(group_size=GROUP)
        case "int8":
            return torchao.Int8WeightOnlyConfig()
        case "w8a8 int8":
            return torchao.Int8DynamicActivationInt8WeightConfig()
        case "fp8":
            return torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow())
    raise LookupError(f"no {form} in torchao")


def make_torchao(form: str, rows: int, columns: int, x: Tensor) -> Call:
    layer = nn.Sequential(nn.Linear(columns, rows, bias=False, dtype=x.dtype, device=x.device))
    quantize(layer, form, str(x.device))
    return lambda: layer(x)


def quantize(module: nn.Module, form: str, device: str) -> None:
    """Turn a module's linear layers into torchao's."""
    importlib.import_module("torchao.quantization").quantize_(module, configure_torchao(form, device))
