"""Watches: what is looked for in the numbers of a tensor, however many pieces it comes in."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from qload.declare import Blocks, OtherVersion, ParameterKind
from qload.findings import Finding, report
from qload.values.floats import FLOAT_BITS, FloatBits


class Bits(Protocol):
    """An array of integers: a tensor of torch, or an array of numpy."""

    @property
    def shape(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __and__(self, other: Any, /) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __eq__(self, other: object, /) -> Any: ...
    def __ne__(self, other: object, /) -> Any: ...
    def flatten(self) -> Any: ...


class Watch(ABC):
    """Sees every piece of a tensor once, and judges then."""

    @abstractmethod
    def see(self, bits: Bits) -> None:
        """Look at a piece that is not empty."""

    @property
    @abstractmethod
    def is_suspect(self) -> bool:
        """Whether any part of what was seen is wrong, or could be."""

    @abstractmethod
    def judge(self, where: str, file: str) -> Iterator[Finding]:
        """What is wrong with all that was seen, if it was one tensor."""


@dataclass(slots=True)
class FloatWatch(Watch):
    """Scales, tables and zero-points: finite, and where they are not `signed`, never negative."""

    noun: str
    number: FloatBits
    signed: bool
    is_odd: bool = False
    is_negative: bool = False

    def see(self, bits: Bits) -> None:
        # Nearly all scales are positive and as they should be, which two passes without memory of their own show.
        if self.number.signed and _are_all_useful(bits, self.number):
            return
        self.is_odd = self.is_odd or has_odd(bits, self.number)
        if not self.signed and self.number.signed and not self.is_negative:
            self.is_negative = _has_negative(bits, self.number)

    @property
    def is_suspect(self) -> bool:
        return self.is_odd or self.is_negative

    def judge(self, where: str, file: str) -> Iterator[Finding]:
        if self.is_odd:
            yield _not_finite(self.noun, where, file)
        elif self.is_negative:
            yield report(
                "QL501",
                f"the {self.noun} is negative somewhere",
                where=where,
                file=file,
                remedy="the checkpoint is damaged: no producer makes such scales of this kind",
            )


@dataclass(slots=True)
class BlockWatch(Watch):
    """The scales inside of blocks: finite."""

    blocks: Blocks
    is_odd: bool = False

    def see(self, bits: Bits) -> None:
        step, number = self.blocks.nbytes // 2, FLOAT_BITS["F16"]
        self.is_odd = self.is_odd or any(has_odd(bits[..., place // 2 :: step], number) for place in self.blocks.places)

    @property
    def is_suspect(self) -> bool:
        return self.is_odd

    def judge(self, where: str, file: str) -> Iterator[Finding]:
        if self.is_odd:
            yield _not_finite("scale of a block", where, file)


@dataclass(slots=True)
class RangeWatch(Watch):
    """Integers inside of bounds: indices, zero-points, and codes of scales, of which the first one too great is NaN."""

    kind: ParameterKind
    bounds: tuple[int, int]
    low: int = 0
    high: int = 0
    is_begun: bool = False

    def see(self, bits: Any) -> None:
        low, high = int(bits.min()), int(bits.max())
        self.low, self.high = (min(self.low, low), max(self.high, high)) if self.is_begun else (low, high)
        self.is_begun = True

    @property
    def is_suspect(self) -> bool:
        return self.is_begun and (self.low < self.bounds[0] or self.high >= self.bounds[1])

    def judge(self, where: str, file: str) -> Iterator[Finding]:
        if self.is_suspect:
            yield _not_finite(self.kind.value, where, file) if self.kind.is_scale else self._out_of_range(where, file)

    def _out_of_range(self, where: str, file: str) -> Finding:
        is_index = self.kind is ParameterKind.INDEX
        return report(
            "QL505",
            "the index points outside of what there is" if is_index else f"the {self.kind.value} is out of range",
            where=where,
            file=file,
            expected=f"{self.bounds[0]} to {self.bounds[1] - 1}",
            found=f"{self.low} to {self.high}",
        )


@dataclass(slots=True)
class GlobalWatch(Watch):
    """Global scales: positive, finite, and greater or less than 1 as the format has it."""

    number: FloatBits
    divides: bool | None
    odd: list[float] = field(default_factory=list)
    alien: list[float] = field(default_factory=list)

    def see(self, bits: Bits) -> None:
        for value in map(self.number.decode, bits.flatten().tolist()):
            if not 0 < value < _USEFUL:
                self.odd.append(value)
            elif self.divides is not None and (value < 1 if self.divides else value > 1):
                self.alien.append(value)

    @property
    def is_suspect(self) -> bool:
        return bool(self.odd or self.alien)

    def judge(self, where: str, file: str) -> Iterator[Finding]:
        if self.odd:
            yield report(
                "QL502",
                "the global scale is not a positive finite number",
                where=where,
                file=file,
                found=f"{self.odd[0]:g}",
                remedy="what it was computed from was never seen, or overflowed: calibrate with more data",
            )
        elif self.alien:
            own, other = ("a divisor", "a multiplier") if self.divides else ("a multiplier", "a divisor")
            yield report(
                "QL502",
                f"the global scale is {other}, and this format stores {own}",
                where=where,
                file=file,
                expected=f"{'more' if self.divides else 'less'} than 1",
                found=f"{self.alien[0]:g}",
                remedy="store its reciprocal, or correct quant_method to that of the format it was written for",
            )


@dataclass(slots=True)
class VersionWatch(Watch):
    """Zero-points that are all what another version of the format stores."""

    other: OtherVersion
    is_all: bool = True
    is_some: bool = False

    def see(self, bits: Bits) -> None:
        step = len(self.other.words)
        alike = [bits[..., place::step] == word for place, word in enumerate(self.other.words)]
        is_some = any(bool(each.any()) for each in alike)
        self.is_all = self.is_all and is_some and all(bool(each.all()) for each in alike)
        self.is_some = self.is_some or is_some

    @property
    def is_suspect(self) -> bool:
        return self.is_some

    def judge(self, where: str, file: str) -> Iterator[Finding]:
        if self.is_all and self.is_some:
            yield report(
                "QL503",
                "the zero-points are those of the other version of the format",
                where=where,
                file=file,
                expected=self.other.expected,
                found=self.other.found,
                remedy=self.other.remedy,
            )


@dataclass(slots=True)
class SettingWatch(Watch):
    """A setting: nothing but the config's value."""

    value: int
    number: FloatBits | None
    stored: set[float] = field(default_factory=set)

    def see(self, bits: Bits) -> None:
        numbers = bits.flatten().tolist()
        self.stored.update(numbers if self.number is None else map(self.number.decode, numbers))

    @property
    def is_suspect(self) -> bool:
        return not self.stored <= {self.value}

    def judge(self, where: str, file: str) -> Iterator[Finding]:
        if self.is_suspect:
            yield report(
                "QL508",
                "the setting stored beside the weight is not the config's",
                where=where,
                file=file,
                expected=self.value,
                found=", ".join(f"{number:g}" for number in sorted(self.stored)),
                remedy="the checkpoint was quantized in another way than its config says: correct the config",
            )


_USEFUL = 2.0**100
"""What a global scale is below that was computed from anything."""


def has_odd(bits: Any, number: FloatBits) -> bool:
    """Whether any is no finite number, or one that no computation with others survives."""
    if bool(((bits & number.mask) == number.mark).any()):
        return True
    return number.most is not None and bool(((bits & ~number.least) >= number.most).any())


def _are_all_useful(bits: Any, number: FloatBits) -> bool:
    """Whether all are finite, of some use, and without a sign: integers that are no less than 0 then."""
    end = number.mask & ~number.least if number.most is None else number.most
    return bool(bits.min() >= 0) and bool(bits.max() < end)


def _has_negative(bits: Any, number: FloatBits) -> bool:
    """Whether any is less than zero; a negative zero is not."""
    return bool(bits.min() < 0) and bool(((bits < 0) & (bits != number.least)).any())


def _not_finite(noun: str, where: str, file: str) -> Finding:
    return report(
        "QL501",
        f"the {noun} is not a finite number everywhere",
        where=where,
        file=file,
        remedy="the checkpoint is damaged, or was quantized with overflowing statistics",
    )
