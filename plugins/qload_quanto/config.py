"""Quanto's configs: the map of modules beside the weights, and the section that transformers and diffusers know.

Source of the fields: optimum-quanto's `quantization_map`, and the `QuantoConfig` of transformers and of diffusers.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from qload.fields import Edges, Unread
from qload.patterns import Dialect, NameList, Patterns

NONE = "none"
KINDS = {
    "qint2": "qint2",
    "qint4": "qint4",
    "qint8": "qint8",
    "qfloat8": "qfloat8_e4m3fn",
    "qfloat8_e4m3fn": "qfloat8_e4m3fn",
    "qfloat8_e4m3fnuz": "qfloat8_e4m3fnuz",
    "qfloat8_e5m2": "qfloat8_e5m2",
}
"""The names of quanto's types, and the types that they mean."""


class ModuleKinds(BaseModel):
    """What a module's weights and activations are quantized to, by quanto's names of types."""

    model_config = ConfigDict(extra="forbid")

    weights: str = NONE
    activations: str = NONE

    @field_validator("weights", "activations")
    @classmethod
    def _check(cls, value: str) -> str:
        if value == NONE:
            return value
        if value not in KINDS:
            raise ValueError(f"is none of {', '.join(KINDS)}, {NONE}")
        return KINDS[value]


class QuantoConfig(BaseModel):
    """The map of a checkpoint's `modules`, or one type of weights for all but those `modules_to_not_convert`."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["quanto"] = "quanto"
    modules: dict[str, ModuleKinds] | None = Field(
        None, description="What is quantized, by names of modules; so quanto_qmap.json lists it."
    )
    weights: Literal["int8", "int4", "int2", "float8"] = Field(
        "int8",
        validation_alias=AliasChoices("weights", "weights_dtype"),
        description="What weights are rounded to, where no modules are listed.",
    )
    activations: Literal["int8", "float8"] | None = Field(None, description="What inputs are rounded to.")
    modules_to_not_convert: Edges = Field(None, description="Modules that are left alone, by ends of names or regexes.")
    dequantize: Unread = Field(None, description="Whether transformers is to turn the weights into plain ones.")

    def kinds(self, names: Iterable[str]) -> ModuleKinds | None:
        """What is done to the module with those names; None where it is left alone."""
        if self.modules is not None:
            return next((self.modules[name] for name in names if name in self.modules), None)
        return None if self.excluded.match(names) else self._all

    @cached_property
    def excluded(self) -> Patterns:
        """The entries of `modules_to_not_convert`, ready to match."""
        return Patterns(tuple(self.modules_to_not_convert or ()), Dialect.EDGE)

    @cached_property
    def _all(self) -> ModuleKinds:
        activations = NONE if self.activations is None else f"q{self.activations}"
        return ModuleKinds(weights=f"q{self.weights}", activations=activations)

    def name_lists(self) -> tuple[NameList, ...]:
        """The modules that the config lists."""
        return (NameList(("modules_to_not_convert",), self.excluded.entries, dialect=Dialect.EDGE),)
