"""Words that are one slip of the hand away from known ones."""

from collections.abc import Iterable
from difflib import get_close_matches

_LEAST = 4


def find_near(word: str, known: Iterable[str]) -> str | None:
    """The known word that is one letter, or two letters that changed places, away; None where none is.

    Names of one model differ by as little as `q_proj` and `k_proj`, `fc1` and `fc2`, `expert` and `experts`: a
    slip is one in a part of four letters or more, and neither of a digit nor of a plural.
    """
    if len(word) < _LEAST:
        return None
    return next((near for near in get_close_matches(word, known, n=3, cutoff=0.75) if _is_slip(word, near)), None)


def _is_slip(word: str, near: str) -> bool:
    parts, others = word.split("_"), near.split("_")
    if len(parts) != len(others):
        return False
    different = [(part, other) for part, other in zip(parts, others, strict=True) if part != other]
    return len(different) == 1 and _is_slip_of_a_part(*different[0])


def _is_slip_of_a_part(part: str, other: str) -> bool:
    if max(len(part), len(other)) < _LEAST or part.rstrip("s") == other.rstrip("s"):
        return False
    if any(letter.isdigit() for letter in {*part} ^ {*other}):
        return False
    return is_one_edit(part, other)


def is_one_edit(first: str, second: str) -> bool:
    """Whether one letter added, left out or changed, or two neighbours changed for each other, make one the other."""
    start = 0
    while start < min(len(first), len(second)) and first[start] == second[start]:
        start += 1
    first, second = first[start:], second[start:]
    while first and second and first[-1] == second[-1]:
        first, second = first[:-1], second[:-1]
    return max(len(first), len(second)) == 1 or (len(first) == len(second) == 2 and first == second[::-1])
