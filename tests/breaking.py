"""Ways to break a copy of a real checkpoint, and the cases that hold each rule to finding it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edits import WEIGHTS, edit_config, edit_tensors
from torch import Tensor

Break = Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """A checkpoint of tests/data, what breaks a copy of it, and what is then found.

    `where` is the place of a finding, or a beginning of it; `options` are those of `qload.validate`.
    """

    code: str
    checkpoint: str
    breaks: Break
    where: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def put(name: str, change: Callable[[Tensor], Tensor]) -> Break:
    return lambda folder: edit_tensors(folder, lambda stored: stored.update({name: change(stored[name])}))


def add(name: str, tensor: Tensor) -> Break:
    return lambda folder: edit_tensors(folder, lambda stored: stored.update({name: tensor}))


def drop(begin: str) -> Break:
    def change(stored: dict[str, Tensor]) -> None:
        for name in [name for name in stored if name.startswith(begin)]:
            del stored[name]

    return lambda folder: edit_tensors(folder, change)


def config(change: Callable[[dict[str, Any]], Any]) -> Break:
    return lambda folder: edit_config(folder, change)


def config_alone(change: Callable[[dict[str, Any]], Any]) -> Break:
    """A change of config.json where no file beside it says what it said before."""

    def apply(folder: Path) -> None:
        edit_config(folder, change)
        for name in ("quantize_config.json", "hf_quant_config.json"):
            (folder / name).unlink(missing_ok=True)

    return apply


def cut(size: int) -> Break:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def half(tensor: Tensor) -> Tensor:
    return tensor[: len(tensor) // 2].clone()
