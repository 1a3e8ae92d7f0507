"""Plugins that nobody installed: made in a test, whole or broken, and a checkpoint of one of them."""

import json
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from samples import DEMO
from torch import Tensor

import qload
from qload.declare import channel_scale, packed
from qload.hookspecs import Capabilities, MethodInfo, ModuleInfo
from qload.layout import in_, out
from qload.registry import Origin, Registry
from qload.torch import Layer

ROWS = "rows"


def make_plugin(**hooks: Any) -> types.SimpleNamespace:
    """A plugin in one object, of which `hooks` replaces some hooks, or takes some away with None."""

    def qload_method_info() -> MethodInfo:
        return MethodInfo("a method", None, Capabilities())

    def qload_scheme_for(config: Any, module: ModuleInfo) -> str:
        return f"{config} {module.name}"

    def qload_create_weights() -> tuple[()]:
        return ()

    def qload_dequantize(layer: Any) -> Tensor:
        raise NotImplementedError

    found = {
        "qload_method_info": qload_method_info,
        "qload_scheme_for": qload_scheme_for,
        "qload_create_weights": qload_create_weights,
        "qload_dequantize": qload_dequantize,
    }
    return types.SimpleNamespace(**{name: hook for name, hook in {**found, **hooks}.items() if hook is not None})


def origin(name: str, plugin: object, distribution: str = "dist") -> Origin:
    def load() -> object:
        if isinstance(plugin, Exception):
            raise plugin
        return plugin

    return Origin(name, f"{name}_module", distribution, "1.0", load)


def make_rows(**hooks: Any) -> types.SimpleNamespace:
    """A method of int8 rows that works, in one object, with some hooks replaced or, with None, taken away."""

    def embedding(layer: Any, ids: Tensor) -> Tensor:
        values: Tensor = layer.values[ids] * layer.row_scale[ids, None]
        return values

    found: dict[str, Any] = {
        "qload_method_info": lambda: MethodInfo(ROWS, None, Capabilities(embedding="qload_embedding" in found)),
        "qload_scheme_for": lambda module: None if module.name == "lm_head" else "by row",
        "qload_create_weights": lambda: (
            packed("values", out(), in_(), dtypes=("I8",)),
            channel_scale("row_scale", out(), dtypes=("F32",)),
        ),
        "qload_dequantize": lambda layer: layer.values * layer.row_scale[:, None],
        "qload_embedding": embedding,
    }
    found = {name: hook for name, hook in {**found, **hooks}.items() if hook is not None}
    return types.SimpleNamespace(**found)


def registry_with(plugin: object, name: str = ROWS, plugins: Iterable[Origin] = ()) -> Registry:
    """The installed methods, and one more."""
    installed = Registry.discover()
    origins = [each for known in installed.names for each in installed.origins(known)]
    return Registry([*origins, origin(name, plugin)], plugins=plugins)


def write_rows(folder: Path, name: str = ROWS, *, skip: Iterable[str] = ("lm_head",)) -> dict[str, Tensor]:
    """Write the demo checkpoint as int8 rows; returns what its tensors mean, dense, by their names."""
    model = qload.load(DEMO, dtype=torch.float32)
    tensors: dict[str, Tensor] = {}
    dense: dict[str, Tensor] = {}
    for path, weight in _dense(model).items():
        module = path.removesuffix(".weight")
        if weight.ndim != 2 or module in skip:
            tensors[path] = dense[path] = weight
            continue
        scale = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
        values = (weight / scale[:, None]).round()
        tensors |= {f"{module}.values": values.to(torch.int8), f"{module}.row_scale": scale}
        dense[path] = values * scale[:, None]
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((DEMO / "config.json").read_text())
    config |= {"quantization_config": {"quant_method": name}, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return dense


def _dense(model: torch.nn.Module) -> dict[str, Tensor]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    tensors = {f"{name}.weight": qload.dequantize(layer).float().contiguous() for name, layer in layers.items()}
    rest = {n: p.detach() for n, p in model.named_parameters() if n.rpartition(".")[0] not in layers}
    return tensors | rest
