"""Whether numbers in modules' names mean anything to a quantization config: else one module stands for all alike."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qload.checkpoint.header import MAX_NAME
from qload.patterns import NEGATIVE, POSITIVE, REGEX_PREFIX

_DIGIT = re.compile(r"\d")
_PLAIN = re.compile(r"[\w.\-]+")
_COMPARES = re.compile(r"\(\?P=")


class Blurring:
    """Names with a zero for each digit of their numbers, of layers and experts; each part is worked out once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def blur(self, name: str) -> str:
        """`layers.17.fc1` becomes `layers.00.fc1`."""
        found = self._known.get(name)
        if found is None:
            above, dot, last = name.rpartition(".")
            shown = "0" * len(last) if dot and last.isdecimal() else last
            found = self._known[name] = f"{self.blur(above)}.{shown}" if dot else last
        return found


@dataclass(frozen=True, slots=True)
class Numbers:
    """Where a config tells numbers apart: in names that contain one of `places`, or with `everywhere` in all.

    A text without digits cannot tell one number from another of as many digits, in whatever dialect it is read, since
    no dialect has a class of characters that some digits are in and others not, without writing a digit.
    """

    places: tuple[re.Pattern[str], ...] = ()
    everywhere: bool = False

    def matter_in(self, blurred: str) -> bool:
        """Whether modules may be treated differently whose names are alike when blurred."""
        return self.everywhere or any(place.search(blurred) for place in self.places)


def find_numbers(section: Mapping[str, Any]) -> Numbers:
    """Where a quantization config, whose texts may be names or patterns of modules, tells numbers apart."""
    places: dict[str, None] = {}
    blurring = Blurring()
    for text in _list_texts(section):
        if len(text) > MAX_NAME or _COMPARES.search(text):
            return Numbers(everywhere=True)
        if not _DIGIT.search(text):
            continue
        if not _PLAIN.fullmatch(text):
            if _may_be_pattern(text):
                return Numbers(everywhere=True)
        elif any(each.isdecimal() for each in text.split(".")):
            # A dot may be meant as any character.
            places[_blur_all(text, blurring)] = None
    return Numbers(tuple(map(re.compile, places)))


def _blur_all(text: str, blurring: Blurring) -> str:
    """As it would be found in a blurred name, where it may begin with a number, too."""
    return blurring.blur(f".{text}").removeprefix(".")


def _may_be_pattern(text: str) -> bool:
    """Whether it could match a module's name, which has none of the first characters; of the others a regex is made."""
    rest = text.removeprefix(REGEX_PREFIX).removeprefix(POSITIVE).removeprefix(NEGATIVE)
    return not any(each in rest for each in " /=@,;:") or any(each in rest for each in "\\[(|*?^$")


def _list_texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _list_texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _list_texts(inner)
