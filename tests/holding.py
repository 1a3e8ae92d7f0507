"""How a case is held: what is broken is found, and nothing else; what is not broken is silent."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from breaking import Break, Case
from edits import edit_tensors
from samples import DATA, flaws
from torch import Tensor

import qload
from qload.findings import Finding


def hold(case: Case, folder: Path) -> tuple[Finding, ...]:
    """The findings of a copy of the case's checkpoint, once it is broken: all of the case's code, one at its place."""
    silent = qload.validate(DATA / case.checkpoint, **case.options).findings
    assert {finding.code for finding in silent} <= flaws(DATA / case.checkpoint)
    case.breaks(folder)
    found = qload.validate(folder, **case.options).findings
    findings = tuple(each for each in found if each.code not in flaws(folder))
    assert {finding.code for finding in findings} == {case.code}
    assert any(finding.where.startswith(case.where) for finding in findings)
    return findings


def together(*breaks: Break) -> Break:
    def apply(folder: Path) -> None:
        for each in breaks:
            each(folder)

    return apply


def replace_module(name: str, tensors: Mapping[str, Tensor]) -> Break:
    """Store these tensors, by their names below it, in place of what a module stores."""

    def change(stored: dict[str, Tensor]) -> None:
        for each in [each for each in stored if each.startswith(f"{name}.")]:
            del stored[each]
        stored.update({f"{name}.{leaf}": tensor for leaf, tensor in tensors.items()})

    return lambda folder: edit_tensors(folder, change)


def plain_module(name: str, rows: int, columns: int) -> Break:
    return replace_module(name, {"weight": torch.zeros(rows, columns, dtype=torch.bfloat16)})


def rename(change: Callable[[str], str]) -> Break:
    """Store each tensor under what `change` makes of its name."""

    def apply(stored: dict[str, Tensor]) -> None:
        renamed = {change(name): tensor for name, tensor in stored.items()}
        stored.clear()
        stored.update(renamed)

    return lambda folder: edit_tensors(folder, apply)
