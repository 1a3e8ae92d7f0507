"""The quantization config that GPTQModel writes for ggml's blocks; a GGUF file's own says nothing more than the method.

Source of the fields: GPTQModel's `GGUFConfig`, which joins `bits` and `format` to the name of a type.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

NEGATIVE, POSITIVE = "-:", "+:"

_TYPES = {
    "q1_0": "Q1_0_g32",
    "q1_0_g128": "Q1_0",
    "q4_0": "Q4_0",
    "q8_0": "Q8_0",
    "q4_k": "Q4_K",
    "q4_k_s": "Q4_K",
    "q4_k_m": "Q4_K",
    "q5_k": "Q5_K",
    "q5_k_s": "Q5_K",
    "q5_k_m": "Q5_K",
    "q6_k": "Q6_K",
}
"""GPTQModel's names of types, with ggml's; a module has one type, whatever the ending says of a whole file."""
_DEFAULTS = {1: "q1_0", 4: "q4_0", 5: "q5_k_m", 6: "q6_k", 8: "q8_0"}
_ANY = "gguf"


def name_type(bits: int | str, form: str) -> str:
    """The type of so many bits and that format. Raises ValueError for one that GPTQModel does not write."""
    text = str(bits).strip().lower().replace("-", "_")
    if not text.isdigit():
        name = text
    elif form == _ANY:
        name = _DEFAULTS.get(int(text), f"q{text}")
    else:
        name = f"q{text}{form.removeprefix('q')}"
    if name not in _TYPES:
        raise ValueError(f"{name!r} is not one of the types {', '.join(_TYPES)}")
    return _TYPES[name]


class Override(BaseModel):
    """One entry of `dynamic`: what differs for the modules that its pattern matches."""

    model_config = ConfigDict(extra="allow")

    bits: int | str | None = None
    format: str | None = None


class GgufConfig(BaseModel):
    """`quantization_config` of a checkpoint of ggml's blocks."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["gguf"] = "gguf"
    bits: int | str | None = None
    format: str = Field(_ANY, validation_alias=AliasChoices("checkpoint_format", "format"))
    lm_head: bool = False
    dynamic: dict[str, Override] | None = None

    @field_validator("dynamic")
    @classmethod
    def _check_patterns(cls, value: dict[str, Override] | None) -> dict[str, Override] | None:
        for pattern in value or {}:
            try:
                re.compile(_strip(pattern))
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return value

    def type_for(self, names: Iterable[str]) -> str | None:
        """The type of a module's blocks; None where `dynamic` leaves it out.

        The first pattern that matches decides, negative ones before the others. Raises ValueError for an unknown one.
        """
        names = tuple(names)
        for pattern, override in self.overrides:
            if any(pattern.match(name) for name in names):
                if override is None:
                    return None
                return self._name(override.bits or self.bits, override.format or self._own_format(override))
        return self._name(self.bits, self.format)

    def _own_format(self, override: Override) -> str:
        """An override of the bits alone takes the format that goes with them."""
        return self.format if override.bits is None else _ANY

    def _name(self, bits: Any, form: str) -> str:
        if bits is None:
            raise ValueError("the config does not say how many bits its modules have")
        return name_type(bits, form)

    @cached_property
    def overrides(self) -> tuple[tuple[re.Pattern[str], Override | None], ...]:
        """The entries of `dynamic` in the order in which they are tried; None for those that leave modules out."""
        entries = [(pattern, pattern.startswith(NEGATIVE), entry) for pattern, entry in (self.dynamic or {}).items()]
        entries.sort(key=lambda entry: not entry[1])
        return tuple((re.compile(_strip(pattern)), None if out else entry) for pattern, out, entry in entries)


def _strip(pattern: str) -> str:
    return pattern.removeprefix(POSITIVE).removeprefix(NEGATIVE)
