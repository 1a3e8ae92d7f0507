"""Fields that the configs of several methods have, checked as each of them means them."""

from typing import Annotated, TypeVar

from pydantic import AfterValidator

from qload.patterns import Dialect, Overrides, Patterns

T = TypeVar("T")


def _check_group_size(value: int) -> int:
    if value != -1 and value <= 0:
        raise ValueError("group_size is -1 or positive")
    return value


def _check_edges(value: list[str] | None) -> list[str] | None:
    Patterns(tuple(value or ()), Dialect.EDGE)
    return value


def _check_overrides(value: dict[str, T]) -> dict[str, T]:
    Overrides(value)
    return value


GroupSize = Annotated[int, AfterValidator(_check_group_size)]
"""The input features that share a scale; -1 for all of them."""

Edges = Annotated[list[str] | None, AfterValidator(_check_edges)]
"""Names of modules in the dialect of transformers, whose regexes are held to compile."""

OverridesByName = Annotated[dict[str, T], AfterValidator(_check_overrides)]
"""What differs, by regexes of names that are held to compile."""
