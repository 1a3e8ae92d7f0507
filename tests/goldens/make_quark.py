"""Makes quark.safetensors: what AMD Quark 0.13 (amd-quark) packs, and what it decodes of that itself, on a CPU.

Run as `python make_quark.py OUTPUT`. Each variant is a linear layer that Quark quantizes, freezes and packs as its
export to safetensors does (`QParamsLinear.from_module`), with the names that its export gives the tensors. The
metadata holds the variant's config of the layer, as Quark writes it, and its pack_method; `dequant` is what the packed
layer computes with. Where the packed layer cannot decode, it is what the frozen layer computes with.
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

NAMES = {"scale": "scale", "zero_point": "zero_point"}
INT = {"symmetric": False, "round_method": "half_even", "scale_type": "float"}
TENSOR = {"qscheme": "per_tensor", "observer_cls": "PerTensorMinMaxObserver"}
CHANNEL = {"qscheme": "per_channel", "observer_cls": "PerChannelMinMaxObserver", "ch_axis": 0}
GROUP = {"qscheme": "per_group", "observer_cls": "PerGroupMinMaxObserver", "ch_axis": -1, "group_size": 16}
BLOCK = {"qscheme": "per_block", "observer_cls": "PerBlock2DMinMaxObserver", "block_size": [8, 16]}
MX = {"qscheme": "per_group", "observer_cls": "PerBlockMXObserver", "ch_axis": -1, "group_size": 32}
E8M0 = {**MX, "scale_format": "e8m0", "scale_calculation_mode": "even"}
NVFP4 = [
    {"dtype": "fp4", **MX, "group_size": 16, "scale_format": "e4m3", "is_dynamic": False},
    {"dtype": "fp8_e4m3", **TENSOR, "is_scale_quant": True},
]
W4A8 = [{"dtype": "fp8_e4m3", **TENSOR}, {"dtype": "int4", **CHANNEL, **INT, "symmetric": True}]

VARIANTS: dict[str, tuple[Any, tuple[int, int], str]] = {
    **{
        f"{dtype}-{name}-{order}": ({"dtype": dtype, **extent, **INT}, (24, 32), order)
        for dtype in ("int4", "uint4")
        for name, extent in (("group", GROUP), ("channel", CHANNEL), ("tensor", TENSOR))
        for order in ("reorder", "order")
    },
    "int4-group-symmetric": ({"dtype": "int4", **GROUP, **INT, "symmetric": True}, (24, 32), "reorder"),
    "int4-channel-axis1": ({"dtype": "int4", **CHANNEL, **INT, "ch_axis": 1}, (24, 32), "reorder"),
    "uint4-group-odd-rows": ({"dtype": "uint4", **GROUP, **INT}, (21, 32), "reorder"),
    **{
        f"{dtype}-{name}": ({"dtype": dtype, **extent, **INT}, (24, 32), "reorder")
        for dtype in ("int8", "uint8", "int2", "uint2", "int3")
        for name, extent in (
            ("group", {**GROUP, "group_size": 4} if dtype == "int3" else GROUP),
            ("channel", CHANNEL),
            ("tensor", TENSOR),
        )
    },
    "int8-channel-axis1": ({"dtype": "int8", **CHANNEL, **INT, "ch_axis": 1}, (24, 32), "reorder"),
    "int8-channel-symmetric": ({"dtype": "int8", **CHANNEL, **INT, "symmetric": True}, (24, 32), "reorder"),
    "uint2-group-float-zero": ({"dtype": "uint2", **GROUP, **INT, "zero_point_type": "float32"}, (24, 32), "reorder"),
    **{
        f"{dtype}-{name}": ({"dtype": dtype, **extent, "symmetric": True}, (24, 32), "reorder")
        for dtype in ("fp8_e4m3", "fp8_e5m2")
        for name, extent in (("tensor", TENSOR), ("channel", CHANNEL), ("block", BLOCK), ("mx", E8M0))
    },
    "fp8_e4m3-channel-axis1": ({"dtype": "fp8_e4m3", **CHANNEL, "symmetric": True, "ch_axis": 1}, (24, 32), "reorder"),
    **{f"{dtype}-mx": ({"dtype": dtype, **E8M0}, (24, 64), "reorder") for dtype in ("fp4", "fp6_e2m3", "fp6_e3m2")},
    "fp4-mx-short": ({"dtype": "fp4", **E8M0}, (24, 72), "reorder"),
    "fp4-group-float": ({"dtype": "fp4", **MX, "group_size": 16, "scale_format": "float32"}, (24, 32), "reorder"),
    "fp4-group-e5m3": ({"dtype": "fp4", **MX, "group_size": 16, "scale_format": "e5m3"}, (24, 32), "reorder"),
    "fp4-mx-ceil": ({"dtype": "fp4", **E8M0, "scale_calculation_mode": "ceil"}, (24, 64), "reorder"),
    "nvfp4": (NVFP4, (24, 32), "reorder"),
    "progressive": (W4A8, (24, 32), "reorder"),
    **{
        f"mx-{element}": (
            {"dtype": "mx", "mx_element_dtype": element, "ch_axis": -1, "group_size": 32},
            (24, 64),
            "order",
        )
        for element in ("fp4", "fp6_e2m3", "fp6_e3m2")
    },
}


def make(spec: Any, size: tuple[int, int], order: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a layer of that size, and its config."""
    torch.manual_seed(0)
    model = nn.Module()
    model.m = nn.Linear(size[1], size[0], bias=False)
    with torch.no_grad():
        model.m.weight.add_(0.02)
    model.forward = lambda x: model.m(x)
    config = QLayerConfig(weight=[_config(each) for each in spec] if isinstance(spec, list) else _config(spec))
    quantizer = ModelQuantizer(QConfig(global_quant_config=config))
    model = quantizer.freeze(quantizer.quantize_model(model, [torch.randn(2, size[1])]))
    frozen = model.m
    meant = frozen.get_quant_weight(frozen.weight).detach().clone()
    packed = QParamsLinear.from_module(frozen, "quark", pack_method=order)
    tensors = {_rename(name): tensor.clone() for name, tensor in packed.state_dict().items()}
    try:
        meant = packed._get_qweight(packed.weight)
    except Exception as error:
        print("   (decoded by the frozen layer:", repr(error)[:100], ")")
    return {**tensors, "dequant": meant.float().contiguous()}, config.to_dict()


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
    kept: dict[str, Tensor] = {}
    settings: dict[str, str] = {}
    for name, (spec, size, order) in VARIANTS.items():
        try:
            tensors, config = make(copy.deepcopy(spec), size, order)
        except Exception as error:
            print("NOT", name, repr(error)[:150])
            continue
        print(name, {key: (str(each.dtype).removeprefix("torch."), tuple(each.shape)) for key, each in tensors.items()})
        kept |= {f"{name}.{key}": tensor.contiguous() for key, tensor in tensors.items()}
        settings[name] = json.dumps({"config": config, "pack_method": order})
    save_file(kept, sys.argv[1], settings)


if __name__ == "__main__":
    main()
