"""mxfp4's quantization config.

Source of the fields: transformers' `Mxfp4Config`; of how names are matched, its `should_convert_module`.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator


class Mxfp4Config(BaseModel):
    """`quantization_config` of an mxfp4 checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["mxfp4"] = "mxfp4"
    modules_to_not_convert: list[str] | None = None

    @field_validator("modules_to_not_convert")
    @classmethod
    def _check_patterns(cls, value: list[str] | None) -> list[str] | None:
        for entry in value or ():
            try:
                re.compile(entry)
            except re.error as error:
                raise ValueError(f"{entry!r} is not a regular expression ({error})") from error
        return value

    def excludes(self, names: Iterable[str]) -> bool:
        """Whether a module is left alone: an entry is a regex for it or a module above it, or the end of its name."""
        entries = tuple(self.modules_to_not_convert or ())
        return any(self.excluded.match(name) is not None or name.endswith(entries) for name in names)

    @cached_property
    def excluded(self) -> re.Pattern[str]:
        """One regex for any of the entries, up to the end of the name of a module."""
        entries = "|".join(f"(?:{entry})" for entry in self.modules_to_not_convert or ())
        return re.compile(rf"(?:{entries})(?:(?<=\.)|(?=\.|$))" if entries else r"(?!)")
