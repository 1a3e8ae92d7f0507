"""A file's metadata of its architecture, asked for by key, with an account of what nobody asked for."""

import math
import struct
from collections.abc import Mapping
from typing import Any

from qload.findings import Finding, report

LARGEST = 2**31 - 1

_HARMLESS = (
    "attention.causal",
    "attention.value_length",
    "expert_count",
    "expert_gating_func",
    "expert_used_count",
    "rope.dimension_count",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",
)
"""What changes nothing, or is held against the tensors' shapes."""


class RefusalError(Exception):
    """What a file asks for and cannot be done, as a finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


class Facts:
    """The metadata whose keys begin with the architecture's name, without it. Raises RefusalError for faults."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, file: str) -> None:
        self._prefix = f"{architecture}."
        self._file = file
        self._values = {
            key.removeprefix(self._prefix): value for key, value in metadata.items() if key.startswith(self._prefix)
        }
        self._used: set[str] = set()

    def refuse(self, message: str, key: str = "", *, code: str = "QL105", **facts: Any) -> RefusalError:
        return RefusalError(report(code, message, where=self._prefix + key if key else "", file=self._file, **facts))

    def find(self, key: str) -> Any:
        """The value of a key: one number where a list has the same for each layer; None where there is none."""
        self._used.add(key)
        value = self._values.get(key)
        if isinstance(value, tuple):
            if len(set(value)) != 1:
                raise self.refuse("the layers differ, and transformers' do not", key, code="QL104", found=str(value))
            value = value[0]
        return _shorten(value) if isinstance(value, float) else value

    def need(self, key: str) -> Any:
        value = self.find(key)
        if value is None:
            raise self.refuse("the metadata lacks a key", key, remedy="the file is incomplete: convert it anew")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A number of things, of which there is one at least."""
        value = self.need(key) if default is None else self.find(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= LARGEST:
            raise self.refuse("the number is impossible", key, found=repr(value))
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.find(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.refuse("the value is no number", key, found=repr(value))
        return float(value)

    def check_all_used(self) -> None:
        """Refuse metadata that nobody asked for: the model would compute without it."""
        for key in sorted(self._values.keys() - self._used - set(_HARMLESS)):
            value = self._values[key]
            if value:
                raise self.refuse(
                    "the metadata says something of the model that is not understood",
                    key,
                    code="QL104",
                    found=repr(value)[:80],
                )


def _shorten(value: float) -> float:
    """The shortest number that is the same in 32 bits: 1e-05 for 9.99999974e-06."""
    if not math.isfinite(value) or abs(value) > 3e38:
        return value
    shortest = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((each for each in shortest if struct.pack("<f", each) == struct.pack("<f", value)), value)
