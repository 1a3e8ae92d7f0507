"""The checkpoints that are meant by the paths that a command is given."""

import os
from collections.abc import Iterable
from pathlib import Path

_WEIGHTS = (".safetensors", ".safetensors.index.json")
"""How the names of files end that say nothing by themselves."""
_PARTS = (".json", ".safetensors")
"""How those end that are parts of the checkpoint in their folder."""


def choose_targets(paths: Iterable[str], *, whole: bool = False) -> tuple[str, ...]:
    """The paths, with its folder for a file of weights, each once; with `whole`, for any part of a checkpoint."""
    ends = _PARTS if whole else _WEIGHTS
    targets = [_find_folder(path) if path.endswith(ends) and os.path.isfile(path) else path for path in paths]  # noqa: PTH113
    return tuple({os.path.normpath(target): target for target in reversed(targets)}.values())[::-1]


def _find_folder(path: str) -> str:
    return str(Path(path).parent)
