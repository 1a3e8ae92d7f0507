"""Makes bitsandbytes.safetensors with the producer itself: bitsandbytes 0.50.2, torch 2.13, on a CPU.

    PYTHONPATH=<folder with bitsandbytes> python tests/goldens/make_bitsandbytes.py

Of every case there are the tensors that a checkpoint would have, under `<case>/m.`, and what bitsandbytes makes of
them. Where rows do not begin with blocks, that is its own implementation for all devices: the one for processors with
AVX-512 cuts such rows into blocks one by one, which is not how they were quantized.
"""

import json
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.functional import (
    dequantize_4bit,
    dequantize_blockwise,
    int8_vectorwise_dequant,
)
from bitsandbytes.nn import Linear4bit, Linear8bitLt, Params4bit
from safetensors.torch import save_file
from torch import Tensor, nn

GOLDENS = Path(__file__).with_name("bitsandbytes.safetensors")

FOUR_BITS: dict[str, dict[str, Any]] = {
    "nf4": {"size": (6, 128), "dtype": "float32"},
    "fp4": {"size": (6, 128), "dtype": "float32", "kind": "fp4"},
    "nf4-nested": {"size": (60, 160), "dtype": "bfloat16", "block": 32, "nested": True},
    "fp4-nested": {"size": (5, 256), "dtype": "float16", "kind": "fp4", "block": 128, "nested": True},
    "nf4-one-block": {"size": (4, 96), "dtype": "bfloat16", "block": 4096},
    "nf4-odd-nested": {"size": (7, 33), "dtype": "float32", "nested": True},
    "fp4-odd": {"size": (9, 35), "dtype": "bfloat16", "kind": "fp4", "block": 32},
    "nf4-flat": {"size": (10, 96), "dtype": "float16"},
    "fp4-flat-nested": {"size": (280, 34), "dtype": "float16", "kind": "fp4", "block": 32, "nested": True},
    "nf4-bfloat16": {"size": (4, 128), "dtype": "bfloat16", "storage": "bfloat16", "nested": True},
    "nf4-float16": {"size": (4, 128), "dtype": "float16", "storage": "float16"},
    "fp4-float32": {"size": (4, 128), "dtype": "float32", "storage": "float32", "kind": "fp4"},
    "nf4-float64": {"size": (4, 128), "dtype": "float32", "storage": "float64"},
    "nf4-int8": {"size": (4, 128), "dtype": "float32", "storage": "int8"},
    "nf4-flat-bfloat16": {"size": (6, 96), "dtype": "bfloat16", "storage": "bfloat16", "nested": True},
}
THRESHOLDS = (0.0, 6.0)


def make_four_bits(size: tuple[int, int], dtype: str, **how: Any) -> dict[str, Tensor]:
    weight = torch.randn(size).to(getattr(torch, dtype))
    layer = Linear4bit(size[1], size[0], bias=False)
    storage = getattr(torch, how.get("storage", "uint8"))
    layer.weight = Params4bit(
        weight,
        blocksize=how.get("block", 64),
        compress_statistics=how.get("nested", False),
        quant_type=how.get("kind", "nf4"),
        quant_storage=storage,
        module=layer,
    )
    layer = layer.to("cpu")
    return {**{f"m.{name}": tensor for name, tensor in layer.state_dict().items()}, "dense": decode(layer.weight)}


def decode(weight: Any) -> Tensor:
    state = weight.quant_state
    if state.shape[1] % state.blocksize == 0:
        dense: Tensor = dequantize_4bit(weight.data, state)
        return dense
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    stored = weight.data.view(torch.uint8).reshape(-1)
    compute = _dequantize_4bit_compute.__wrapped__
    flat: Tensor = compute(stored, absmax, state.code, state.blocksize, state.shape, state.dtype)
    return flat


def make_int8(threshold: float) -> dict[str, Tensor]:
    """With inputs of which one feature reaches the threshold in one token, and one token is all zeros."""
    plain = nn.Linear(80, 24).to(torch.float16)
    layer = Linear8bitLt(80, 24, has_fp16_weights=False, threshold=threshold)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to("cpu").eval()
    x = torch.randn(2, 3, 80)
    x[0, 1, 7], x[1, 2, 40], x[1, 0] = 9.5, -6.0, 0.0
    made = {f"m.{name}": tensor for name, tensor in layer.state_dict().items()}
    made["dense"] = int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        made[f"x.{name}"] = x.to(dtype)
        made[f"y.{name}"] = layer(x.to(dtype))
    return made


def main() -> None:
    torch.manual_seed(0)
    cases = {name: make_four_bits(**how) for name, how in FOUR_BITS.items()}
    cases |= {f"int8-{threshold:g}": make_int8(threshold) for threshold in THRESHOLDS}
    tensors = {f"{case}/{name}": tensor for case, made in cases.items() for name, tensor in made.items()}
    # Tables are one tensor in memory, and a file has none twice.
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()},
        GOLDENS,
        {"cases": json.dumps(FOUR_BITS)},
    )


if __name__ == "__main__":
    main()
