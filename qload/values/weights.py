"""Watches of whole weights, which are looked at where all is read: numbers that are none, and tensors never written."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qload.findings import Finding, report
from qload.values.floats import FloatBits
from qload.values.watches import Bits, Watch, has_odd

_FEW, _MANY = 4096, 64
"""As many numbers of a weight nearly always say that it is not constant, and so many are never alike by chance."""


@dataclass(slots=True)
class WeightWatch(Watch):
    """Weights and biases that are stored as floats: finite."""

    number: FloatBits
    is_odd: bool = False

    def see(self, bits: Bits) -> None:
        self.is_odd = self.is_odd or has_odd(bits, self.number)

    @property
    def is_suspect(self) -> bool:
        return self.is_odd

    def judge(self, where: str, file: str) -> Iterator[Finding]:
        if self.is_odd:
            yield report(
                "QL509",
                "the weight is not a finite number everywhere",
                where=where,
                file=file,
                remedy="the checkpoint is damaged, or its values overflowed a narrower dtype: convert it again",
            )


@dataclass(slots=True)
class ZeroWatch(Watch):
    """A scale: something in it is not zero."""

    noun: str
    is_zero: bool = True
    is_begun: bool = False

    def see(self, bits: Bits) -> None:
        self.is_begun = True
        self.is_zero = self.is_zero and not bool((bits != 0).any())

    @property
    def is_suspect(self) -> bool:
        return self.is_zero and self.is_begun

    def judge(self, where: str, file: str) -> Iterator[Finding]:
        if self.is_suspect:
            yield _unwritten(f"the {self.noun} is zero throughout", where, file)


@dataclass(slots=True)
class ConstantWatch(Watch):
    """A weight: not one number throughout, of as many as no weight has alike."""

    noun: str
    count: int = 0
    first: int | None = None
    is_constant: bool = True

    def see(self, bits: Any) -> None:
        bits = bits.reshape(-1)
        self.first = int(bits[0]) if self.first is None else self.first
        self.count += len(bits)
        alike = self.is_constant and bool((bits[:_FEW] == self.first).all())
        self.is_constant = alike and bool((bits == self.first).all())

    @property
    def is_suspect(self) -> bool:
        return self.is_constant and self.count >= _MANY

    def judge(self, where: str, file: str) -> Iterator[Finding]:
        if self.is_suspect:
            number = "zero" if self.first == 0 else "one number"
            yield _unwritten(f"the {self.noun} is {number} throughout", where, file)


def _unwritten(message: str, where: str, file: str) -> Finding:
    remedy = "it was never written, or overwritten: save or download the checkpoint again"
    return report("QL504", message, where=where, file=file, remedy=remedy)
