"""Random changes to real checkpoints: what they break is found, and whatever they are nothing falls over.

benchmarks/mutate.py tries thousands, and counts what survives; these are a few of each kind.
"""

from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from edits import WEIGHTS, copy_checkpoint, split_files
from mutating import MUTATORS
from samples import DATA, flaws

import qload
from qload.errors import QloadError

STRUCTURAL = (
    *("rename a tensor", "move a number", "change a shape", "change offsets", "odd entry", "drop an entry"),
    *("drop a tensor", "drop a module", "crop a tensor", "cut a file", "claim a length"),
    *("move in the index", "rename in the index"),
)
"""Those that change what headers say, all of which headers and the architecture show."""
CHECKPOINTS = sorted(path for path in DATA.iterdir() if path.is_dir())
IDS = torch.tensor([[1, 5, 17, 300, 42, 7]])


def mutate(source: Path, folder: Path, name: str, random: Random) -> str | None:
    """A changed copy of a checkpoint, in one file or in three; how, or None where there is nothing to change."""
    copy_checkpoint(source, folder)
    if (folder / WEIGHTS).exists() and (name.endswith("index") or random.random() < 0.5):
        split_files(folder, 3)
    return MUTATORS[name](random, folder)


@pytest.mark.parametrize("name", MUTATORS)
def test_whatever_is_changed_nothing_falls_over(name: str, tmp_path: Path) -> None:
    """A finding, or an error of ours."""
    registry = qload.Registry.discover()
    for source in CHECKPOINTS:
        folder = tmp_path / source.name
        if mutate(source, folder, name, Random(f"{name} {source.name}")) is not None:
            with suppress(QloadError):
                qload.validate(folder, registry=registry, tp=(1, 2), deep=True)


@pytest.mark.parametrize("source", CHECKPOINTS, ids=lambda path: path.name)
def test_what_headers_show_is_found_or_harmless(source: Path, tmp_path: Path) -> None:
    registry, expected = qload.Registry.discover(), None
    for name in STRUCTURAL:
        folder = tmp_path / name
        said = mutate(source, folder, name, Random(f"{source.name} {name}"))
        if said is None or is_found(folder, source, registry):
            continue
        expected = compute(source) if expected is None else expected
        assert torch.equal(compute(folder), expected), said


def is_found(folder: Path, source: Path, registry: qload.Registry) -> bool:
    try:
        report = qload.validate(folder, registry=registry, model=True)
    except QloadError:
        return True
    return not {finding.code for finding in report.findings} <= flaws(source)


def compute(folder: Path) -> Any:
    model: Any = qload.load(folder)
    with torch.no_grad():
        return model(IDS % model.config.get_text_config().vocab_size).logits.nan_to_num()
