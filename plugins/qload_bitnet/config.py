"""BitNet's quantization config.

Source of the fields, and of what leaves a module alone: transformers' `BitNetQuantConfig` and `should_convert_module`.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qload.fields import Edges, Unread
from qload.patterns import Dialect, NameList, Patterns


class BitNetConfig(BaseModel):
    """`quantization_config` of a BitNet checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["bitnet"] = "bitnet"
    linear_class: Literal["bitlinear", "autobitlinear"] = Field(
        "bitlinear", description="The layer that computes: the older one divides by the scale, the newer multiplies."
    )
    quantization_mode: Literal["online", "offline"] = Field(
        "offline", description="Whether weights are stored packed, or plain and rounded while computing (online)."
    )
    use_rms_norm: bool = Field(False, description="Whether inputs are normalised before they are rounded.")
    rms_norm_eps: float | None = Field(1e-6, description="What that norm adds to the mean square.")
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
