"""The quantization config that GPTQModel writes for ggml's blocks; a GGUF file's own says nothing more than the method.

Source of the fields: GPTQModel's `GGUFConfig`, which joins `bits` and `format` to the name of a type.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from qload.fields import OverridesByName, Provenance, Unread
from qload.patterns import NameList, Overrides, list_overrides

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


class GgufConfig(Provenance):
    """`quantization_config` of a checkpoint of ggml's blocks."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["gguf"] = "gguf"
    bits: int | str | None = Field(None, description="Bits of a weight, or the name of a type as q4_k_m.")
    format: str = Field(
        _ANY,
        validation_alias=AliasChoices("checkpoint_format", "format"),
        description="What stands after the bits in the name of a type, as q_k_m.",
    )
    lm_head: bool = Field(False, description="Whether the head is quantized, too.")
    dynamic: OverridesByName[Override] | None = Field(
        None, description="What differs, by regexes of names; -: before one leaves modules alone."
    )
    gguf_file: Unread = Field(None, description="The file that transformers reads.")
    group_size: Unread = Field(None, description="The features that share a scale, which the type says.")

    def type_for(self, names: Iterable[str]) -> str | None:
        """The type of a module's blocks; None where `dynamic` leaves it out. Raises ValueError for an unknown one."""
        names = tuple(names)
        if self.overrides.leave_out(names):
            return None
        override = self.overrides.find(names) or Override()
        return self._name(override.bits or self.bits, override.format or self._own_format(override))

    def _own_format(self, override: Override) -> str:
        """An override of the bits alone takes the format that goes with them."""
        return self.format if override.bits is None else _ANY

    def _name(self, bits: Any, form: str) -> str:
        if bits is None:
            raise ValueError("the config does not say how many bits its modules have")
        return name_type(bits, form)

    @cached_property
    def overrides(self) -> Overrides[Override]:
        """The entries of `dynamic`, ready to match."""
        return Overrides(self.dynamic or {})

    def name_lists(self) -> tuple[NameList, ...]:
        """The modules that the config lists."""
        return tuple(list_overrides(("dynamic",), self.dynamic or ()))
