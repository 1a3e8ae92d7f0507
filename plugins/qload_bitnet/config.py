"""BitNet's quantization config.

Source of the fields, and of what leaves a module alone: transformers' `BitNetQuantConfig` and `should_convert_module`.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qload.fields import Edges
from qload.patterns import Dialect, NameList, Patterns


class BitNetConfig(BaseModel):
    """`quantization_config` of a BitNet checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["bitnet"] = "bitnet"
    linear_class: Literal["bitlinear", "autobitlinear"] = "bitlinear"
    quantization_mode: Literal["online", "offline"] = "offline"
    use_rms_norm: bool = False
    rms_norm_eps: float | None = 1e-6
    modules_to_not_convert: Edges = None

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
