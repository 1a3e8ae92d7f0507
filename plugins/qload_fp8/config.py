"""fp8's quantization config.

Source of the fields: transformers' `FineGrainedFP8Config`, vLLM's `Fp8Config`, and GPTQModel's quantize_config.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator

from qload.patterns import Dialect, NameList, Patterns, and_above


class Fp8Config(BaseModel):
    """`quantization_config` of an fp8 checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["fp8"] = "fp8"
    activation_scheme: Literal["dynamic", "static"] | None = None
    weight_block_size: tuple[PositiveInt, PositiveInt] | None = None
    weight_scale_semantics: Literal["inverse"] | None = None
    modules_to_not_convert: list[str] | None = None
    ignored_layers: list[str] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Fp8Config":
        if self.weight_block_size is not None and self.activation_scheme == "static":
            raise ValueError("activation_scheme static needs scales by tensor, and weight_block_size gives blocks")
        return self

    @property
    def inputs(self) -> str:
        """How inputs are quantized; a producer that says nothing does not."""
        return self.activation_scheme or "none"

    def excludes(self, names: Iterable[str]) -> bool:
        """Whether a module is left alone: an entry is the end of its name, or of that of a module above it."""
        return self.excluded.match(and_above(names))

    @cached_property
    def excluded(self) -> Patterns:
        """The entries that leave modules alone, ready to match."""
        return Patterns((*(self.modules_to_not_convert or ()), *(self.ignored_layers or ())), Dialect.SUFFIX)

    def name_lists(self) -> tuple[NameList, ...]:
        """The modules that the config lists."""
        lists = {"modules_to_not_convert": self.modules_to_not_convert, "ignored_layers": self.ignored_layers}
        return tuple(
            NameList((key,), tuple(entries or ()), dialect=Dialect.SUFFIX, below=True) for key, entries in lists.items()
        )
