"""How findings name numbers of ranks and shares."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction

_SHOWN = 8
"""How many of the numbers of ranks are named that would do."""


def name_ranks(sizes: Collection[int]) -> str:
    """Those numbers of ranks: 1 rank; 2, 4 and 8 ranks."""
    return f"{_join(list(map(str, sizes)), 'and')} {_noun(sizes)}"


def name_sizes(sizes: Collection[int]) -> str:
    """Numbers of ranks to choose from, the first of them where they are many: 1, 2 or 4 ranks."""
    words = list(map(str, sizes))
    if len(words) > _SHOWN:
        return f"{', '.join(words[:_SHOWN])}, ... ranks"
    return f"{_join(words, 'or')} {_noun(sizes)}"


def name_fitting(sizes: Collection[int]) -> str:
    """Those that fit: 1 rank fits; 1, 2 or 4 ranks fit; nothing where none does."""
    return f"{name_sizes(sizes)} {'fits' if len(sizes) == 1 else 'fit'}" if sizes else ""


def name_shares(shares: Mapping[int, Fraction] | Mapping[int, str]) -> str:
    """What each rank has: 64 at 2 and 4 ranks, 32 at 8 ranks."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for size, share in shares.items():
        sizes[str(share)].append(size)
    return ", ".join(f"{share} at {name_ranks(alike)}" for share, alike in sizes.items())


def _noun(sizes: Iterable[int]) -> str:
    return "rank" if list(sizes) == [1] else "ranks"


def _join(words: list[str], conjunction: str) -> str:
    *before, last = words
    return f"{', '.join(before)} {conjunction} {last}" if before else last
