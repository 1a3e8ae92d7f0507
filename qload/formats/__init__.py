"""The forms in which an outcome is written: a module for each, imported when it is asked for.

Each has a function `write(outcome) -> str`.
"""

import importlib
from collections.abc import Callable

from qload.formats.outcome import FailOn, Failure, Outcome

Writer = Callable[[Outcome], str]

FORMATS = {
    "full": "qload.formats.full",
    "concise": "qload.formats.concise",
    "json": "qload.formats.document",
    "sarif": "qload.formats.sarif",
    "github": "qload.formats.github",
    "junit": "qload.formats.junit",
}
"""The module of each format, by its name."""

FOR_PEOPLE = ("full", "concise")
"""Those that end in a verdict; the others are for programs, and have nothing before or after them."""


def find_writer(name: str) -> Writer:
    """The function that writes a format."""
    write: Writer = importlib.import_module(FORMATS[name]).write
    return write


__all__ = ["FORMATS", "FOR_PEOPLE", "FailOn", "Failure", "Outcome", "Writer", "find_writer"]
