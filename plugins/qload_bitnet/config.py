"""BitNet's quantization config.

Source of the fields, and of what leaves a module alone: transformers' `BitNetQuantConfig` and `should_convert_module`.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

from qload.patterns import Dialect, Patterns

_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"


class BitNetConfig(BaseModel):
    """`quantization_config` of a BitNet checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["bitnet"] = "bitnet"
    linear_class: Literal["bitlinear", "autobitlinear"] = "bitlinear"
    quantization_mode: Literal["online", "offline"] = "offline"
    use_rms_norm: bool = False
    rms_norm_eps: float | None = 1e-6
    modules_to_not_convert: list[str] | None = None

    @field_validator("modules_to_not_convert")
    @classmethod
    def _check_patterns(cls, value: list[str] | None) -> list[str] | None:
        _make_patterns(value)
        return value

    def excludes(self, names: Iterable[str]) -> bool:
        """Whether a module is left alone: an entry is a regex for whole parts at the start of its name, or its end."""
        return self.excluded.match(names)

    @cached_property
    def excluded(self) -> Patterns:
        """The entries of `modules_to_not_convert`, ready to match."""
        return _make_patterns(self.modules_to_not_convert)


def _make_patterns(entries: list[str] | None) -> Patterns:
    starts = (f"(?:{entry}){_BOUNDARY}" for entry in entries or ())
    ends = (f".*{re.escape(entry)}$" for entry in entries or ())
    return Patterns((*starts, *ends), Dialect.REGEX)
