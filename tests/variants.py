"""The small layers in tests/goldens: what a producer stored of each, and what it made of that again."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

GOLDENS = Path(__file__).parent / "goldens"


@dataclass(frozen=True)
class Variant:
    """The settings it was made with; its tensors as stored, below the module `m`; and the `made` ones."""

    settings: dict[str, Any]
    stored: dict[str, Tensor]
    made: dict[str, Tensor]

    def __str__(self) -> str:
        return " ".join(f"{name} {value}" for name, value in self.settings.items())


MADE = ("dequantized", "input", "output")


def read_variants(name: str) -> list[Variant]:
    """Every variant in the file of that name."""
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        settings = {number: json.loads(text) for number, text in file.metadata().items()}
    return [_pick(settings[number], tensors, f"{number}/") for number in sorted(settings, key=int)]


def _pick(settings: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> Variant:
    own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    made = {name: own.pop(name) for name in MADE if name in own}
    return Variant(settings, {f"m.{name}": tensor for name, tensor in own.items()}, made)
