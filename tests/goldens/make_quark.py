"""Makes quark.safetensors: what AMD Quark 0.13 (amd-quark) packs, and what it decodes of that itself, on a CPU.

Run as `python make_quark.py OUTPUT`; what Quark cannot make is printed. Each variant is a linear layer that Quark
quantizes, freezes and packs as its export to safetensors does (`QParamsLinear.from_module`), with the names that its
export gives the tensors. The metadata holds the variant's config of the layer, as Quark writes it, and its
pack_method; `dequant` is what the packed layer computes with, or, where that cannot decode, the frozen one. Variants of
inputs hold some, `x`, and what the packed layer takes them for, `seen`.
"""

import copy
import json
import sys
from typing import Any

import torch
from quark.torch import ModelQuantizer
from quark.torch.export.nn.modules.qparamslinear import QParamsLinear
from quark.torch.quantization.config.config import QConfig, QLayerConfig, QTensorConfig
from quark.torch.quantization.config.type import Dtype
from safetensors.torch import save_file
from torch import Tensor, nn

INT = {"symmetric": False, "round_method": "half_even", "scale_type": "float"}
TENSOR = {"qscheme": "per_tensor", "observer_cls": "PerTensorMinMaxObserver"}
CHANNEL = {"qscheme": "per_channel", "observer_cls": "PerChannelMinMaxObserver", "ch_axis": 0}
GROUP = {"qscheme": "per_group", "observer_cls": "PerGroupMinMaxObserver", "ch_axis": -1, "group_size": 16}
BLOCK = {"qscheme": "per_block", "observer_cls": "PerBlock2DMinMaxObserver", "block_size": [8, 16]}
MX = {"qscheme": "per_group", "observer_cls": "PerBlockMXObserver", "ch_axis": -1, "group_size": 32}
E8M0 = {**MX, "scale_format": "e8m0", "scale_calculation_mode": "even"}
EVEN = {"scale_calculation_mode": "even"}
NVFP4: list[dict[str, Any]] = [
    {"dtype": "fp4", **MX, "group_size": 16, "scale_format": "e4m3", "is_dynamic": False},
    {"dtype": "fp8_e4m3", **TENSOR, "is_scale_quant": True},
]
W4A8 = [{"dtype": "fp8_e4m3", **TENSOR}, {"dtype": "int4", **CHANNEL, **INT, "symmetric": True}]

VARIANTS: dict[str, tuple[Any, tuple[int, int], str]] = {
    **{
        f"{dtype}-{name}-{order}": ({"dtype": dtype, **extent, **INT}, (16, 32), order)
        for dtype in ("int4", "uint4")
        for name, extent in (("group", GROUP), ("channel", CHANNEL), ("tensor", TENSOR))
        for order in ("reorder", "order")
    },
    "int4-group-symmetric": ({"dtype": "int4", **GROUP, **INT, "symmetric": True}, (16, 32), "reorder"),
    "int4-channel-axis1": ({"dtype": "int4", **CHANNEL, **INT, "ch_axis": 1}, (16, 32), "reorder"),
    "uint4-group-odd-rows": ({"dtype": "uint4", **GROUP, **INT}, (13, 32), "reorder"),
    **{
        f"{dtype}-{name}": ({"dtype": dtype, **extent, **INT}, (16, 32), "reorder")
        for dtype in ("int8", "uint8", "int2", "uint2", "int3")
        for name, extent in (
            ("group", {**GROUP, "group_size": 4} if dtype == "int3" else GROUP),
            ("channel", CHANNEL),
            ("tensor", TENSOR),
        )
    },
    "int8-channel-axis1": ({"dtype": "int8", **CHANNEL, **INT, "ch_axis": 1}, (16, 32), "reorder"),
    "int8-channel-symmetric": ({"dtype": "int8", **CHANNEL, **INT, "symmetric": True}, (16, 32), "reorder"),
    "uint2-group-float-zero": ({"dtype": "uint2", **GROUP, **INT, "zero_point_type": "float32"}, (16, 32), "reorder"),
    **{
        f"{dtype}-{name}": ({"dtype": dtype, **extent, "symmetric": True}, (16, 32), "reorder")
        for dtype in ("fp8_e4m3", "fp8_e5m2")
        for name, extent in (("tensor", TENSOR), ("channel", CHANNEL))
    },
    "fp8_e4m3-channel-axis1": ({"dtype": "fp8_e4m3", **CHANNEL, "symmetric": True, "ch_axis": 1}, (16, 32), "reorder"),
    **{f"{dtype}-mx": ({"dtype": dtype, **E8M0}, (8, 64), "reorder") for dtype in ("fp4", "fp6_e2m3", "fp6_e3m2")},
    "fp4-mx-short": ({"dtype": "fp4", **E8M0}, (8, 72), "reorder"),
    "fp4-group-float": ({"dtype": "fp4", **MX, "group_size": 16, "scale_format": "float32"}, (16, 32), "reorder"),
    "fp4-group-e5m3": ({"dtype": "fp4", **MX, "group_size": 16, "scale_format": "e5m3"}, (16, 32), "reorder"),
    "fp4-mx-ceil": ({"dtype": "fp4", **E8M0, "scale_calculation_mode": "ceil"}, (8, 64), "reorder"),
    "nvfp4": (NVFP4, (16, 32), "reorder"),
    "progressive": (W4A8, (16, 32), "reorder"),
    **{
        f"mx-{element}": (
            {**MX, "dtype": "mx", "mx_element_dtype": element, "observer_cls": "PlaceholderObserver", **EVEN},
            (8, 64),
            "order",
        )
        for element in ("fp4", "fp6_e2m3", "fp6_e3m2")
    },
}


INPUTS: dict[str, Any] = {
    "int8-static": {"dtype": "int8", **TENSOR, **INT},
    "uint8-static": {"dtype": "uint8", **TENSOR, **INT},
    "int8-token": {"dtype": "int8", **CHANNEL, **INT, "symmetric": True, "ch_axis": 1, "is_dynamic": True},
    "int8-token-asymmetric": {"dtype": "int8", **CHANNEL, **INT, "ch_axis": 1, "is_dynamic": True},
    "uint8-token": {"dtype": "uint8", **CHANNEL, **INT, "ch_axis": 1, "is_dynamic": True},
    "int8-tensor": {"dtype": "int8", **TENSOR, **INT, "is_dynamic": True},
    "fp8_e4m3-static": {"dtype": "fp8_e4m3", **TENSOR, "symmetric": True},
    "fp8_e5m2-static": {"dtype": "fp8_e5m2", **TENSOR, "symmetric": True},
    "fp8_e4m3-token": {"dtype": "fp8_e4m3", **CHANNEL, "symmetric": True, "ch_axis": 1, "is_dynamic": True},
    "fp8_e5m2-token": {"dtype": "fp8_e5m2", **CHANNEL, "symmetric": True, "ch_axis": 1, "is_dynamic": True},
    "fp8_e4m3-mx": {"dtype": "fp8_e4m3", **E8M0, "is_dynamic": True},
    **{
        f"{dtype}-{mode}": {"dtype": dtype, **E8M0, "scale_calculation_mode": mode, "is_dynamic": True}
        for dtype in ("fp4", "fp6_e2m3", "fp6_e3m2")
        for mode in ("even", "floor", "ceil")
    },
    "fp4-float": {"dtype": "fp4", **MX, "group_size": 16, "scale_format": "float32", "is_dynamic": True},
    **{
        f"mx-{element}": {
            **MX,
            "dtype": "mx",
            "mx_element_dtype": element,
            "observer_cls": "PlaceholderObserver",
            **EVEN,
            "is_dynamic": True,
        }
        for element in ("fp4", "fp6_e3m2")
    },
    "nvfp4": [{**NVFP4[0], "is_dynamic": True}, NVFP4[1]],
}


class Model(nn.Module):
    """A layer by the name of m."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.m = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.m(x)
        return y


def make(spec: Any, size: tuple[int, int], order: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a layer of that size whose weights are quantized so, and its config."""
    config = QLayerConfig(weight=_configs(spec))
    frozen, packed = quantize(config, size, order, torch.randn(1, 4, size[1]))
    meant, stored = frozen.get_quant_weight(frozen.weight).detach().clone(), name_tensors(packed)
    try:
        meant = packed._get_qweight(packed.weight)
    except Exception as error:
        print("   (decoded by the frozen layer:", repr(error)[:100], ")")
    return {**stored, "dequant": meant.float().contiguous()}, config.to_dict()


def make_inputs(spec: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a layer whose inputs are quantized so, inputs of one batch, and what it takes them for."""
    weight = {"dtype": "fp8_e4m3", **TENSOR, "symmetric": True}
    config = QLayerConfig(weight=_configs(weight), input_tensors=_configs(spec))
    torch.manual_seed(0)
    x = torch.randn(1, 5, 64) * torch.tensor([0.01, 1, 3, 100, 0]).view(5, 1) + 0.005
    # Quark rounds nvfp4's dynamic scales twice, by the greatest input there is and by that of calibration.
    seen = x if isinstance(spec, list) else torch.randn(1, 4, 64) + 0.5
    frozen, packed = quantize(config, (8, 64), "reorder", seen)
    stored = {name: tensor for name, tensor in name_tensors(packed).items() if name.startswith("input_")}
    return {**stored, "x": x, "seen": _see(frozen, packed, x)}, config.to_dict()


def _see(frozen: Any, packed: Any, x: Tensor) -> Tensor:
    seen: Tensor
    try:
        seen = packed._get_qinput(x)
    except NotImplementedError:
        seen = frozen.get_quant_input(x)
    return seen


def make_blocks(size: tuple[int, int], dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of blocks, which Quark decodes and does not make."""
    weight = torch.randn(size).to(dtype)
    scale = torch.rand(-(-size[0] // 8), -(-size[1] // 16)) + 0.5
    name = "fp8_e4m3" if dtype == torch.float8_e4m3fn else "fp8_e5m2"
    # Not `quark.dequantize`, which takes blocks of odd sizes for others.
    meant = torch.ops.quark.dequantize_fp8_per_block(weight, scale, [8, 16])
    config = QLayerConfig(weight=_configs({"dtype": name, **BLOCK, "symmetric": True}))
    return {"weight": weight, "weight_scale": scale, "dequant": meant}, config.to_dict()


def quantize(config: QLayerConfig, size: tuple[int, int], order: str, seen: Tensor) -> tuple[Any, Any]:
    """A layer of that size, frozen, and packed, which saw those inputs in calibration."""
    torch.manual_seed(0)
    model = Model(nn.Linear(size[1], size[0], bias=False))
    model.m.weight.data += 0.02
    quantizer = ModelQuantizer(QConfig(global_quant_config=config))
    frozen = quantizer.freeze(quantizer.quantize_model(model, [seen])).m
    return frozen, QParamsLinear.from_module(frozen, "quark", pack_method=order)


def name_tensors(packed: Any) -> dict[str, Tensor]:
    return {_rename(name): tensor.clone() for name, tensor in packed.state_dict().items()}


def _configs(spec: Any) -> Any:
    return [_config(each) for each in spec] if isinstance(spec, list) else _config(spec)


def _config(spec: dict[str, Any]) -> QTensorConfig:
    whole = {"is_dynamic": False, "ch_axis": None, "group_size": None, "symmetric": None, **spec}
    return QTensorConfig.from_dict({**whole, "dtype": Dtype(whole["dtype"]).name})


def _rename(name: str) -> str:
    """weight_quantizer.scale as weight_scale, weight_quantizer.1.scale as weight_scale_2: Quark's LOAD_MAP_MULTI."""
    head, *rest = name.replace("_quantizer.", "_", 1).split(".") if "_quantizer" in name else [name]
    kind, number = (rest[0], int(head.rpartition("_")[2])) if rest else ("", 0)
    if not rest:
        return head
    return f"{head.rpartition('_')[0]}_{kind}" + (f"_{number + 1}" if number else "")


def main() -> None:
    makers: dict[str, Any] = {
        **{name: (lambda each=each: make(*copy.deepcopy(each)), each[2]) for name, each in VARIANTS.items()},
        **{
            f"inputs-{name}": (lambda each=each: make_inputs(copy.deepcopy(each)), "reorder")
            for name, each in INPUTS.items()
        },
        "fp8_e4m3-block": (lambda: make_blocks((16, 32), torch.float8_e4m3fn), "reorder"),
        "fp8_e5m2-block-odd": (lambda: make_blocks((20, 40), torch.float8_e5m2), "reorder"),
    }
    kept: dict[str, Tensor] = {}
    settings: dict[str, str] = {}
    for name, (maker, order) in makers.items():
        try:
            tensors, config = maker()
        except Exception as error:
            print("NOT", name, repr(error)[:150])
            continue
        print(name, {key: (str(each.dtype).removeprefix("torch."), tuple(each.shape)) for key, each in tensors.items()})
        kept |= {f"{name}.{key}": tensor.contiguous() for key, tensor in tensors.items()}
        settings[name] = json.dumps({"config": config, "pack_method": order})
    save_file(kept, sys.argv[1], settings)


if __name__ == "__main__":
    main()
