"""The checkpoints that are meant by the paths that a command is given."""

import os
from collections.abc import Iterable
from pathlib import Path

_BESIDE = (".json", ".safetensors")
"""How the names of files end that are parts of the checkpoint in their folder, and none of their own."""


def choose_targets(paths: Iterable[str]) -> tuple[str, ...]:
    """The paths, with its folder for a file that is a part of a checkpoint, each once."""
    targets = [_find_folder(path) if path.endswith(_BESIDE) and os.path.isfile(path) else path for path in paths]  # noqa: PTH113
    return tuple({os.path.normpath(target): target for target in reversed(targets)}.values())[::-1]


def _find_folder(path: str) -> str:
    return str(Path(path).parent)
