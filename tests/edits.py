"""Changes to copies of real checkpoints: the ways in which they break."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def copy_checkpoint(source: Path, target: Path) -> Path:
    """A copy to break, without the reference."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("reference.safetensors", "PROVENANCE.md"))
    return target


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Let `change` change the tensors of the one weight file."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def split_files(folder: Path, count: int = 2) -> dict[str, str]:
    """Turn the one weight file into several with an index; returns the index's weight_map."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    placed: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        chosen = {name: tensors[name] for name in names[number::count]}
        save_file(chosen, folder / file)
        placed |= dict.fromkeys(chosen, file)
    (folder / WEIGHTS).unlink()
    write_index(folder, placed)
    return placed


def write_index(folder: Path, placed: Mapping[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict(placed)}))
