"""Makes modelopt.safetensors with nvidia-modelopt 0.47.0, torch 2.13 and transformers 5.17, on CPU.

Of a tiny Llama in each of ModelOpt's formats: one module as it is exported, under `<format>.m.`, with the weight that
ModelOpt's own classes make of it, `<format>.weight`; an input and what the module in memory makes of that, `<format>.x`
and `<format>.y`: by its own simulation, or, where that needs a GPU, by quantizing the input with those classes.
The configs are in the metadata, config.json's section and hf_quant_config.json, as JSON.
"""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP4QTensor, MXFP8QTensor, NVFP4QTensor
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "head_dim": 16,
    "vocab_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "architectures": ["LlamaForCausalLM"],
}
MODULE = "model.layers.0.self_attn.o_proj"
TALL = "model.layers.0.mlp.up_proj"


def blocks(config: dict[str, Any], **sizes: Any) -> dict[str, Any]:
    """A config with other blocks for its weights."""
    config = copy.deepcopy(config)
    for entry in config["quant_cfg"]:
        for cfg in entry["cfg"] if isinstance(entry.get("cfg"), list) else [entry.get("cfg") or {}]:
            if "weight" in entry["quantizer_name"] and cfg.get("block_sizes"):
                cfg["block_sizes"].update({int(dim): size for dim, size in sizes["to"].items()})
    return config


FORMATS: dict[str, tuple[Any, str]] = {
    "fp8": (mtq.FP8_DEFAULT_CFG, MODULE),
    "fp8-channel": (mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG, MODULE),
    "fp8-block": (mtq.FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG, TALL),
    "int8-wo": (mtq.INT8_WEIGHT_ONLY_CFG, MODULE),
    "int8-sq": (mtq.INT8_SMOOTHQUANT_CFG, MODULE),
    "int4-awq": (blocks(mtq.INT4_AWQ_CFG, to={-1: 16}), MODULE),
    "w4a8-awq": (blocks(mtq.W4A8_AWQ_BETA_CFG, to={-1: 16}), MODULE),
    "nvfp4": (mtq.NVFP4_DEFAULT_CFG, MODULE),
    "nvfp4-awq": (mtq.NVFP4_DEFAULT_CFG, MODULE),
    "w4a16-nvfp4": (mtq.W4A16_NVFP4_CFG, MODULE),
    "w4a8-nvfp4-fp8": (mtq.W4A8_NVFP4_FP8_CFG, MODULE),
    "mxfp4": (mtq.MXFP4_DEFAULT_CFG, MODULE),
    "w4a8-mxfp4-fp8": (mtq.W4A8_MXFP4_FP8_CFG, MODULE),
    "mxfp8": (mtq.MXFP8_DEFAULT_CFG, MODULE),
}


def dequantize(name: str, stored: dict[str, Tensor], before: Tensor) -> Any:
    """The weight by ModelOpt's classes; they have none for int8, and none that reads how int4 is exported."""
    weight, scale, shape = stored["weight"], stored["weight_scale"], before.shape
    wide = torch.float32
    if "nvfp4" in name:
        more = {"double_scale": stored["weight_scale_2"], "block_sizes": {-1: shape[1] // scale.shape[1]}}
        return NVFP4QTensor(shape, wide, weight).dequantize(wide, scale=scale, **more)
    if "mxfp4" in name:
        return MXFP4QTensor(shape, wide, weight).dequantize(wide, scale=scale, block_sizes={-1: 32})
    if "mxfp8" in name:
        return MXFP8QTensor(shape, wide, weight).dequantize(wide, scale=scale, block_sizes={-1: 32})
    if name == "fp8-block":
        flat = scale[:, 0, :, 0]
        return FP8QTensor(shape, wide, weight).dequantize(wide, scale=flat, block_sizes={-1: 128, -2: 128})
    if "fp8" in name:
        return FP8QTensor(shape, wide, weight).dequantize(wide, scale=scale if scale.dim() == 0 else scale[:, None])
    if "int8" in name:
        return weight.float() * scale[:, None]
    spread = scale.repeat_interleave(shape[1] // scale.shape[1], 1)
    return (before / spread).round().clamp(-8, 7) * spread


def quantize_input(name: str, stored: dict[str, Tensor], x: Tensor) -> Any:
    """The input by the same classes, there and back."""
    wide = torch.float32
    if name.endswith("-fp8"):
        scale = stored.get("input_scale", x.abs().amax() / 448)
        return FP8QTensor.quantize(x, scale)[0].dequantize(wide, scale=scale)
    if name.startswith("nvfp4"):
        made, scale, double = NVFP4QTensor.quantize(x, 16, None, stored["input_scale"])
        return made.dequantize(wide, scale=scale, double_scale=double, block_sizes={-1: 16})
    if name.startswith("mxfp"):
        made, scale = MXFP4QTensor.quantize(x, 32) if name == "mxfp4" else MXFP8QTensor.quantize(x)
        return made.dequantize(wide, scale=scale, block_sizes={-1: 32})
    return x


def smooth(model: Any) -> None:
    """Scales of the inputs at random, in place of those that AWQ searches for on a GPU alone."""
    for module in model.modules():
        if hasattr(module, "input_quantizer") and module.input_quantizer.is_enabled:
            module.input_quantizer.pre_quant_scale = torch.rand(module.in_features) + 0.5


def find_range(module: Any) -> float:
    """The greatest input that calibration saw."""
    amax = module.input_quantizer.amax if module.input_quantizer.is_enabled else None
    return 1.0 if amax is None else float(amax)


def make(name: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    config, place = FORMATS[name]
    torch.manual_seed(len(name))
    model: Any = LlamaForCausalLM(LlamaConfig.from_dict(LLAMA)).float()
    ids = torch.arange(32).view(2, 16)
    mtq.quantize(model, config, None if config["algorithm"] is None else lambda each: each(ids))
    module = model.get_submodule(place)
    if name == "nvfp4-awq":
        smooth(model)
    # With two axes in front of the features, as in the calibration: the simulation keeps the axes that it saw first.
    x = torch.randn(1, 3, module.in_features) * find_range(module) / 3
    try:
        with torch.no_grad():
            made = {"x": x, "y": module(x)}
    except (AssertionError, RuntimeError):
        made = {}
    before = module.weight.detach().clone()
    export_hf_checkpoint(model, export_dir=folder)
    stored = {
        key.removeprefix(f"{place}."): tensor
        for key, tensor in load_file(folder / "model.safetensors").items()
        if key.startswith(f"{place}.")
    }
    made |= {f"m.{key}": tensor for key, tensor in stored.items()}
    made["weight"] = dequantize(name, stored, before)
    if "y" not in made:
        made |= {"x": x, "y": F.linear(quantize_input(name, stored, x), made["weight"])}
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    return made, {"config": section, "side": json.loads((folder / "hf_quant_config.json").read_text())}


def main() -> None:
    tensors: dict[str, Tensor] = {}
    configs: dict[str, str] = {}
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            made, config = make(name, Path(folder))
        tensors |= {f"{name}.{key}": tensor.contiguous() for key, tensor in made.items()}
        configs[name] = json.dumps(config)
    save_file(tensors, Path(__file__).with_name("modelopt.safetensors"), metadata=configs)


if __name__ == "__main__":
    main()
