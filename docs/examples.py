"""What `qload validate` prints of a rule: a checkpoint of tests/data, broken as a test breaks it, is validated."""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir
from itertools import takewhile
from pathlib import Path
from string import digits
from typing import Any

from breaking import Case
from click.testing import CliRunner
from edits import copy_checkpoint
from samples import DATA

from qload.cli import cli

CODE = re.compile(r"\b[A-Z]{2,8}\d{3}\b")


def make_examples(cases: Iterable[Case]) -> dict[str, str]:
    """The command and what it says, by code; nothing of a case of which the command says nothing."""
    with tempfile.TemporaryDirectory() as place, chdir(place):
        made = {case.code: _make(case) for case in cases}
    return {code: text for code, text in made.items() if text}


def _make(case: Case) -> str:
    folder = copy_checkpoint(DATA / case.checkpoint, Path(case.checkpoint))
    try:
        case.breaks(folder)
        command = ("validate", case.checkpoint, *_list_options(case.options))
        said = _cut(CliRunner().invoke(cli, command).output.splitlines(), case)
    finally:
        shutil.rmtree(folder)
    return "\n".join((f"$ qload {' '.join(command)}", *said)) if said else ""


def _list_options(options: Mapping[str, Any]) -> Iterator[str]:
    """The options of `qload.validate` as those of the command."""
    for name, value in options.items():
        if value:
            yield f"--{name}"
        if isinstance(value, tuple) and value:
            yield ",".join(map(str, value))


def _cut(lines: list[str], case: Case) -> list[str]:
    """The lines of the first finding with the code."""
    places = [number for number, line in enumerate(lines) if case.code in CODE.findall(line)]
    if not places:
        return []
    first, rest = lines[places[0]], lines[places[0] + 1 :]
    return [first, *takewhile(_goes_on, rest)]


def _goes_on(line: str) -> bool:
    """Whether a line is indented, or begins with the number of a file's line."""
    return line[:1] in {" ", *digits}
