"""Makes hqq.safetensors: small weights as hqq 0.2.8.post1 stores them, with what it makes of them again.

Run it where hqq can be imported: `python tests/goldens/make_hqq.py`. Tensors are called VARIANT/NAME; the weight that
`HQQLinear.dequantize` gives is VARIANT/dequantized. The header's metadata has each variant's settings as JSON.
"""

import json
from pathlib import Path
from typing import Any

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from safetensors.torch import save_file
from torch import Tensor, nn

TARGET = Path(__file__).with_name("hqq.safetensors")
NEEDED = ("W_q", "scale", "zero", "zero_scale")


def variants() -> list[dict[str, Any]]:
    """Bits, axis, group size, shape, dtype, and what else differs."""
    base = {"bits": 4, "axis": 1, "group": 8, "shape": (8, 16), "dtype": "float32"}
    every = (1, 1.58, 2, 3, 4, 5, 6, 8)
    return [
        *({**base, "bits": bits, "axis": axis} for bits in every for axis in (0, 1)),
        *({**base, "bits": bits, "axis": axis, "group": None} for bits in (2, 3, 8) for axis in (0, 1)),
        # Rows that do not pair, groups that straddle rows, rows that are no multiple of ten.
        *({**base, "bits": bits, "shape": (5, 32)} for bits in (2, 3, 4, 8)),
        *({**base, "bits": bits, "shape": (8, 20)} for bits in (2, 3, 4, 8)),
        *({**base, "bits": bits, "axis": 0, "shape": (6, 20)} for bits in (1, 2, 3, 4, 8)),
        {**base, "bits": 3, "axis": 0, "group": None, "shape": (5, 16)},
        {**base, "bits": 3, "group": 8, "shape": (40, 16)},
        *({**base, "bits": bits, "as_float": True, "dtype": dtype}
          for bits in (3, 4, 8) for dtype in ("float32", "bfloat16", "float16")),
        *({**base, "bits": bits, "dtype": "bfloat16"} for bits in (3, 4)),
        {**base, "joined": True},
        {**base, "axis": 0, "joined": True},
        {**base, "whole": True},
        {**base, "axis": 0, "group": None, "whole": True},
    ]  # fmt: skip


def make(variant: dict[str, Any]) -> dict[str, Tensor]:
    rows, columns = variant["shape"]
    linear = nn.Linear(columns, rows, bias=False)
    config = BaseQuantizeConfig(
        nbits=variant["bits"],
        group_size=variant["group"],
        axis=variant["axis"],
        view_as_float=variant.get("as_float", False),
        offload_meta=variant.get("joined", False),
    )
    layer = HQQLinear(linear, config, compute_dtype=getattr(torch, variant["dtype"]), device="cpu")
    stored = {name: value.detach() for name, value in layer.state_dict().items()}
    if not variant.get("whole"):
        stored = {name: value for name, value in stored.items() if name in NEEDED}
    return {**stored, "dequantized": layer.dequantize()}


def main() -> None:
    torch.manual_seed(0)
    # Without a GPU nothing can be pinned, which changes no value.
    Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
    tensors: dict[str, Tensor] = {}
    settings: dict[str, str] = {}
    for number, variant in enumerate(variants()):
        settings[str(number)] = json.dumps(variant)
        tensors |= {f"{number}/{name}": value.contiguous() for name, value in make(variant).items()}
    save_file(tensors, TARGET, settings)


if __name__ == "__main__":
    main()
