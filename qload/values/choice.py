"""Which watches look at a tensor, by its declaration, and what they are to be shown of it."""

from qload.declare import Facts, ParameterKind
from qload.values.floats import FLOAT_BITS, FloatBits
from qload.values.watches import (
    BlockWatch,
    FloatWatch,
    GlobalWatch,
    RangeWatch,
    SettingWatch,
    VersionWatch,
    Watch,
)

Bounds = tuple[int, int] | None


def make_watches(kind: ParameterKind, bounds: Bounds, facts: Facts, dtype: str) -> tuple[Watch, ...]:
    """What is to be looked for in a tensor of that kind, stored in the dtype of that code."""
    number = FLOAT_BITS.get(dtype)
    if facts.blocks is not None:
        return (BlockWatch(facts.blocks),)
    if facts.other is not None:
        return (VersionWatch(facts.other),)
    if kind is ParameterKind.SETTING:
        return () if bounds is None else (SettingWatch(bounds[0], number),)
    if kind in (ParameterKind.INDEX, ParameterKind.ZERO_POINT) or kind.is_scale or kind is ParameterKind.TABLE:
        return _watch_numbers(kind, bounds, facts, number)
    return ()


def _watch_numbers(kind: ParameterKind, bounds: Bounds, facts: Facts, number: FloatBits | None) -> tuple[Watch, ...]:
    if number is None:
        return () if bounds is None else (RangeWatch(kind, bounds),)
    if kind is ParameterKind.GLOBAL_SCALE:
        return (GlobalWatch(number, facts.divides),)
    noun = "scale" if kind.is_scale else kind.value
    return (FloatWatch(noun, number, facts.signed),)


def find_width(facts: Facts, dtype: str) -> int | None:
    """The bytes of the signed integers that watches of such a tensor see; None for those that are stored."""
    if facts.blocks is not None:
        return 2
    return FLOAT_BITS[dtype].nbytes if dtype in FLOAT_BITS else None


def find_unit(facts: Facts, nbytes: int) -> int:
    """The bytes that a piece must hold any number of; `nbytes` are those of one number."""
    if facts.blocks is not None:
        return facts.blocks.nbytes
    return nbytes * len(facts.other.words) if facts.other is not None else nbytes
