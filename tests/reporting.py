"""Outcomes to write: of broken checkpoints, and of findings that no writer would like."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from breaking import Break, add, config, cut, drop, half, put
from edits import copy_checkpoint, edit_config, split_files
from samples import DATA, DEMO

from qload.catalogue import Severity
from qload.findings import Finding, report
from qload.formats import Failure, Outcome
from qload.validation import Report, validate
from qload.validation.excerpts import Excerpt

LAYER = "model.layers.{}.mlp.down_proj"
NASTY = (
    "a\x1b[31mred\x1b[0m\r\nb\tc::error file=x,line=1::%25,%0A <a href='x'>&amp;]]> \"q\" "
    "\u202e\u2028\x85\x9b\ufffe\ud800\u00e9\U0001f999"
)
"""What a name may have in it that a terminal, a workflow or XML would obey, or cannot hold."""


def lose_file(folder: Path) -> None:
    (folder / split_files(folder)[f"{LAYER.format(0)}.weight_scale"]).unlink()


def drop_scales(folder: Path) -> None:
    for layer in range(2):
        drop(f"{LAYER.format(layer)}.weight_scale")(folder)


BREAKS: dict[str, Break] = {
    "sound": lambda folder: None,
    "no scales": drop_scales,
    "surplus": add("model.layers.0.mlp.surp::lus,%0A\x1b[2J\n", torch.zeros(2)),
    "shape": put(f"{LAYER.format(0)}.weight_scale", half),
    "truncated": cut(100_000),
    "lost file": lose_file,
    "no method": config(lambda whole: whole["quantization_config"].update(quant_method=f"wish {NASTY[:-3]}")),
    "no JSON": lambda folder: (folder / "config.json").write_text('{\n  "model_type": "llama",\n}\n'),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
}


def break_checkpoint(name: str, folder: Path) -> Path:
    """A copy of the demo's checkpoint, broken in one of the ways."""
    copy_checkpoint(DEMO, folder)
    BREAKS[name](folder)
    return folder


def nasty_outcome(folder: Path) -> Outcome:
    """Findings with nasty words in every field, of a checkpoint in a folder, and one that could not be checked."""
    findings = (
        Finding("QL107", NASTY, NASTY, NASTY, NASTY, NASTY, NASTY, Severity.WARNING, (NASTY, 3), 7, 9),
        Finding("QL107", NASTY, "", "", NASTY),
        Finding("XY1", "of a plugin"),
        report("QL013", "cannot be read", file="config.json"),
        *(report("QL201", "not stored", where=f"layers.{layer}.x", file=f"{layer}.safetensors") for layer in range(4)),
    )
    excerpts = (Excerpt(NASTY, 7, 9, 4, f"\t{NASTY}" * 3, 3),)
    made = Report(folder, None, 3, 5, findings, str(folder), str(folder), excerpts)
    return Outcome((made,), (Failure(NASTY, NASTY),), folder.parent)


def make_outcome(name: str, folder: Path) -> Outcome:
    """The outcome of validating a broken checkpoint, or the nasty one."""
    if name == "nasty":
        folder.mkdir()
        return nasty_outcome(folder)
    return Outcome((validate(break_checkpoint(name, folder), tp=(1, 64)),), (), folder.parent)


OUTCOMES = (*BREAKS, "nasty")


def pointed(folder: Path, point: Callable[[dict[str, object]], None]) -> Path:
    """A copy of the demo's checkpoint whose config is changed and written over several lines."""
    copy_checkpoint(DATA / DEMO.name, folder)
    edit_config(folder, point)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    return folder
