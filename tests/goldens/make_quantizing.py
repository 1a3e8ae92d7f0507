"""Makes quantizing.safetensors: weights, and what their methods' own tools store of them, on a CPU with torch 2.13.

bitsandbytes 0.50.2 (its implementation for all devices: the one for processors looks codes of scales up in a coarse
table), optimum-quanto 0.2.7, torchao 0.18.0 and hqq 0.2.8.post1. Run it where all can be imported:
`python tests/goldens/make_quantizing.py`. Tensors are called CASE/m.NAME, the weight CASE/weight; the header's
metadata has each case's quantization config as JSON.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from hqq.core.quantize import Quantizer
from optimum.quanto import QLinear, qtypes
from safetensors.torch import save_file
from torch import Tensor, nn
from torchao.core.config import config_to_dict
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    PerRow,
    PerTensor,
    quantize_,
)

TARGET = Path(__file__).with_name("quantizing.safetensors")
Case = tuple[dict[str, Any], Tensor, dict[str, Tensor]]
INTS: dict[int, torch.dtype] = {bits: vars(torch)[f"int{bits}"] for bits in (3, 4)}


def random(rows: int, columns: int, dtype: str) -> Tensor:
    weight = torch.randn(rows, columns)
    weight[rows // 2] = 0
    return weight.to(getattr(torch, dtype))


def for_all_devices(a: Tensor, code: Tensor | None = None, blocksize: int = 256, **_: Any) -> tuple[Tensor, Any]:
    code = bnb.create_dynamic_map()
    operator = torch.ops.bitsandbytes.quantize_blockwise.default
    codes, scales = operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, a, code, blocksize)
    return codes, bnb.QuantState(absmax=scales, code=code, blocksize=blocksize, dtype=a.dtype)


def make_four_bits(kind: str, nested: bool, size: tuple[int, int], dtype: str) -> Case:
    weight = random(*size, dtype)
    packed, state = bnb.quantize_4bit(weight, compress_statistics=nested, quant_type=kind)
    section = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested}
    stored = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    return {"quant_method": "bitsandbytes", **section}, weight, {"weight": packed, **stored}


def make_int8(size: tuple[int, int], dtype: str) -> Case:
    weight = random(*size, dtype)
    values, scale, _ = bnb.int8_vectorwise_quant(weight.half())
    return {"quant_method": "bitsandbytes", "load_in_8bit": True}, weight, {"weight": values, "SCB": scale}


def make_quanto(kind: str, size: tuple[int, int], dtype: str) -> Case:
    weight = random(*size, dtype)
    if kind.startswith("qfloat"):
        weight[size[0] // 2] = 1  # Of a row of zeros quanto makes no numbers.
    linear = nn.Linear(size[1], size[0], bias=False, dtype=weight.dtype)
    linear.weight.data.copy_(weight)
    layer = QLinear.from_module(linear, weights=qtypes[kind])
    layer.freeze()
    section = {"quant_method": "quanto", "modules": {"m": {"weights": kind, "activations": "none"}}}
    return section, weight, {name: tensor for name, tensor in layer.state_dict().items() if "put_scale" not in name}


def make_torchao(config: Any, size: tuple[int, int], dtype: str) -> Case:
    weight = random(*size, dtype)
    if isinstance(config, Float8WeightOnlyConfig):
        weight[size[0] // 2] = 1  # Of a row of zeros torchao makes no numbers.
    linear = nn.Linear(size[1], size[0], bias=False, dtype=weight.dtype)
    linear.weight.data.copy_(weight)
    quantize_(linear, config)
    tensors, _ = flatten_tensor_state_dict({"m.weight": linear.weight})
    section = {"quant_method": "torchao", "quant_type": {"default": config_to_dict(config)}}
    return section, weight, {name.removeprefix("m."): tensor for name, tensor in tensors.items()}


def make_hqq(bits: float, group: int | None, axis: int, size: tuple[int, int], **how: bool) -> Case:
    weight = random(*size, "float32")
    settings = {"nbits": bits, "group_size": group, "axis": axis, **how}
    words, meta = Quantizer.quantize(weight, device="cpu", compute_dtype=torch.float32, **settings)
    section = {"quant_method": "hqq", "quant_config": {"weight_quant_params": settings}}
    return section, weight, {"W_q": words, "scale": meta["scale"], "zero": meta["zero"]}


def cases() -> Iterator[Case]:
    for kind in ("nf4", "fp4"):
        yield make_four_bits(kind, False, (6, 128), "float32")
        yield make_four_bits(kind, False, (7, 33), "bfloat16")
        yield make_four_bits(kind, True, (130, 128), "bfloat16")
        yield make_four_bits(kind, True, (90, 70), "float16")
    yield make_int8((6, 40), "float32")
    yield make_int8((5, 33), "bfloat16")
    for kind in ("qint8", "qfloat8_e4m3fn", "qfloat8_e5m2", "qfloat8_e4m3fnuz"):
        yield make_quanto(kind, (5, 33), "bfloat16")
        yield make_quanto(kind, (6, 32), "float32")
    for kind in ("qint4", "qint2"):
        for size in ((4, 160), (5, 33), (3, 384), (6, 128)):
            yield make_quanto(kind, size, "float16")
    mappings = MappingType.SYMMETRIC, MappingType.ASYMMETRIC, MappingType.SYMMETRIC_NO_CLIPPING_ERR
    for dtype in ("bfloat16", "float32", "float16"):
        yield make_torchao(Int8WeightOnlyConfig(), (5, 33), dtype)
        yield make_torchao(Float8WeightOnlyConfig(), (5, 33), dtype)
        yield make_torchao(Int8DynamicActivationInt8WeightConfig(reduce_range=True), (5, 64), dtype)
        for mapping in mappings:
            config = IntxWeightOnlyConfig(INTS[4], PerGroup(32), mapping, scale_dtype=torch.float32)
            yield make_torchao(config, (5, 96), dtype)
    yield make_torchao(Int8WeightOnlyConfig(granularity=PerTensor()), (5, 33), "bfloat16")
    yield make_torchao(Float8WeightOnlyConfig(granularity=PerTensor()), (5, 33), "bfloat16")
    yield make_torchao(Float8WeightOnlyConfig(torch.float8_e5m2, granularity=PerRow()), (5, 33), "bfloat16")
    yield make_torchao(IntxWeightOnlyConfig(INTS[3], PerAxis(0)), (5, 33), "bfloat16")
    yield make_torchao(Int8DynamicActivationIntxWeightConfig(INTS[4], PerGroup(32)), (5, 96), "bfloat16")
    for bits in (8, 6, 5, 4, 3, 2, 1.58, 1):
        yield make_hqq(bits, 32, 1, (16, 96), round_zero=bits == 4)
        yield make_hqq(bits, 64, 0, (16, 96))
    yield make_hqq(3, 64, 1, (7, 192))
    yield make_hqq(4, None, 1, (6, 33), optimize=False)
    yield make_hqq(4, 64, 1, (8, 96), view_as_float=True)


def main() -> None:
    torch.manual_seed(0)
    bnb.quantize_blockwise = for_all_devices
    tensors: dict[str, Tensor] = {}
    sections = {}
    for number, (section, weight, stored) in enumerate(cases()):
        case = f"{section['quant_method']}-{number}"
        sections[case] = json.dumps(section)
        tensors[f"{case}/weight"] = weight
        tensors |= {f"{case}/m.{name}": tensor.detach().clone().contiguous() for name, tensor in stored.items()}
    save_file(tensors, TARGET, metadata=sections)


if __name__ == "__main__":
    main()
