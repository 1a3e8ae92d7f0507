"""mxfp4's quantization config.

Source of the fields: transformers' `Mxfp4Config`; of how names are matched, its `should_convert_module`.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qload.fields import Edges, Unread
from qload.patterns import Dialect, NameList, Patterns


class Mxfp4Config(BaseModel):
    """`quantization_config` of an mxfp4 checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["mxfp4"] = "mxfp4"
    modules_to_not_convert: Edges = Field(None, description="Modules that are left alone, by ends of names or regexes.")
    dequantize: Unread = Field(None, description="Whether transformers is to turn the weights into plain ones.")

    def excludes(self, names: Iterable[str]) -> bool:
        """Whether a module is left alone."""
        return self.excluded.match(names)

    @cached_property
    def excluded(self) -> Patterns:
        """The entries of `modules_to_not_convert`, ready to match."""
        return Patterns(tuple(self.modules_to_not_convert or ()), Dialect.EDGE)

    def name_lists(self) -> tuple[NameList, ...]:
        """The modules that the config lists."""
        return (NameList(("modules_to_not_convert",), self.excluded.entries, dialect=Dialect.EDGE),)
