"""Makes quanto.safetensors: small layers as optimum-quanto 0.2.7 stores them, with what it makes of them again.

Run it where optimum.quanto can be imported: `python tests/goldens/make_quanto.py`. Tensors are called VARIANT/NAME;
VARIANT/dequantized is the weight, VARIANT/input and VARIANT/output are of the layer's forward. The header's metadata
has each variant's settings as JSON.
"""

import json
from pathlib import Path
from typing import Any

import torch
from optimum.quanto import Calibration, MaxOptimizer, QLinear, WeightQBitsTensor, qtypes
from safetensors.torch import save_file
from torch import Tensor, nn

TARGET = Path(__file__).with_name("quanto.safetensors")


def variants() -> list[dict[str, Any]]:
    """Types of weights and activations, shape, dtype, and what else differs."""
    base = {"weights": "qint8", "activations": "none", "shape": (6, 32), "dtype": "float32"}
    floats = ("qfloat8_e4m3fn", "qfloat8_e5m2", "qfloat8_e4m3fnuz")
    return [
        *({**base, "weights": kind} for kind in ("qint8", "qint4", "qint2", *floats)),
        *({**base, "weights": kind, "dtype": dtype}
          for kind in ("qint8", "qint4", "qfloat8_e5m2") for dtype in ("bfloat16", "float16")),
        # Groups of 32, 96 and 128; rows that do not pair; inputs that no group divides.
        *({**base, "weights": kind, "shape": shape}
          for kind in ("qint4", "qint2") for shape in ((4, 160), (3, 192), (2, 256), (5, 33), (3, 145), (1, 384))),
        *({**base, "weights": kind, "shape": (3, 160), "shift": "integer"} for kind in ("qint4", "qint2")),
        *({**base, "weights": kind, "activations": inputs}
          for kind, inputs in (("qint8", "qint8"), ("qint4", "qint8"), ("qfloat8_e4m3fn", "qfloat8_e4m3fn"),
                               ("qint8", "qfloat8_e5m2"))),
        *({**base, "weights": kind, "shape": shape, "frozen": False}
          for kind, shape in (("qint8", (4, 32)), ("qint4", (3, 160)), ("qint2", (3, 32)), ("qfloat8_e5m2", (4, 32)))),
    ]  # fmt: skip


def make(variant: dict[str, Any]) -> dict[str, Tensor]:
    dtype, (rows, columns) = getattr(torch, variant["dtype"]), variant["shape"]
    linear = nn.Linear(columns, rows, bias=variant["activations"] != "none", dtype=dtype)
    kinds = {name: None if variant[name] == "none" else qtypes[variant[name]] for name in ("weights", "activations")}
    layer, x = QLinear.from_module(linear, **kinds), torch.randn(3, columns, dtype=dtype)
    if kinds["activations"] is not None:
        with Calibration(streamline=False):
            layer(torch.randn(64, columns, dtype=dtype))
    if "shift" in variant:
        layer.weight = nn.Parameter(quantize_around_zero(layer), requires_grad=False)
    elif variant.get("frozen", True):
        layer.freeze()
    weight = layer.weight if kinds["weights"] is None else layer.qweight.dequantize()
    with torch.no_grad():
        output = layer(x)
    outputs = {"input": x, "output": output.dequantize()} if kinds["activations"] is not None else {}
    return {**layer.state_dict(), "dequantized": weight.detach(), **outputs}


def quantize_around_zero(layer: Any) -> Any:
    """The weight with an integer shift, which the optimizer can give and the module does not ask for."""
    settings = {"qtype": layer.weight_qtype, "axis": 0, "group_size": layer.weight_group_size}
    scale, shift = MaxOptimizer()(layer.weight, zeropoint=True, **settings)
    return WeightQBitsTensor.quantize(layer.weight, scale=scale, shift=shift, **settings)


def main() -> None:
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    settings: dict[str, str] = {}
    for number, variant in enumerate(variants()):
        settings[str(number)] = json.dumps(variant)
        made = make(variant)
        tensors |= {f"{number}/{name}": value.detach().clone().contiguous() for name, value in made.items()}
    save_file(tensors, TARGET, settings)


if __name__ == "__main__":
    main()
