"""GPTQ's quantization config, in config.json or quantize_config.json.

Source of the fields: GPTQModel's QuantizeConfig; AutoGPTQ and optimum write subsets of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from qload.fields import GroupSize, OverridesByName, Provenance, Unread
from qload.patterns import NameList, Overrides, list_overrides


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """What one module is quantized with."""

    bits: int
    group_size: int
    desc_act: bool
    sym: bool


def _flatten(value: Any) -> Any:
    """The modules of a block are listed one by one, or in lists of those quantized together."""
    if not isinstance(value, list):
        return value
    return [name for entry in value for name in (entry if isinstance(entry, list) else [entry])]


class Override(BaseModel):
    """One entry of `dynamic`: what differs for the modules that its pattern matches."""

    model_config = ConfigDict(extra="allow")

    bits: int | None = None
    group_size: GroupSize | None = None
    desc_act: bool | None = None
    sym: bool | None = None


class GptqConfig(Provenance):
    """`quantization_config` of a GPTQ checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["gptq"] = "gptq"
    bits: int = Field(description="Bits of a weight: 2, 3, 4 or 8.")
    group_size: GroupSize = Field(128, description="Input features that share a scale; -1 for all of them.")
    desc_act: bool = Field(
        False, description="Whether columns were quantized by the size of activations, and g_idx has their groups."
    )
    sym: bool = Field(True, description="Whether zero-points lie in the middle.")
    lm_head: bool = Field(False, description="Whether the head is quantized, too.")
    checkpoint_format: str = Field(
        "gptq",
        validation_alias=AliasChoices("checkpoint_format", "format"),
        description="How zero-points are stored: less one (gptq), or as they are (gptq_v2).",
    )
    pack_dtype: str = Field("int32", description="The integers into which values are packed.")
    dynamic: OverridesByName[Override] | None = Field(
        None, description="What differs, by regexes of names; -: before one leaves modules alone."
    )
    modules_in_block_to_quantize: Annotated[list[str] | None, BeforeValidator(_flatten)] = Field(
        None,
        description="The only modules of a block that are quantized, by ends of names.",
        json_schema_extra={"anyOf": [{"type": "array", "items": {"type": ["string", "array"]}}, {"type": "null"}]},
    )
    gptaq: Unread = Field(None, description="Settings of the algorithm that chose how to round.")
    is_marlin_format: Unread = Field(None, description="Whether weights were packed for a kernel; the format says it.")
    awq_gemm_checkpoint: Unread = Field(None, description="Whether the weights were packed by another method's tool.")
    version: Unread = Field(None, description="The version of the packing.")
    zero_point: Unread = Field(None, description="Whether groups have zero-points.")
    extra_config: Unread = Field(None, description="Settings of modules that differ, as the tool noted them.")

    def settings_for(self, names: Iterable[str]) -> ModuleSettings | None:
        """The settings of a module, or None where `dynamic` leaves it out."""
        names = tuple(names)
        if self.overrides.leave_out(names):
            return None
        override = self.overrides.find(names) or Override()
        return ModuleSettings(
            bits=self.bits if override.bits is None else override.bits,
            group_size=self.group_size if override.group_size is None else override.group_size,
            desc_act=self.desc_act if override.desc_act is None else override.desc_act,
            sym=self.sym if override.sym is None else override.sym,
        )

    def is_in_block(self, names: Iterable[str]) -> bool:
        """Whether a module is among those of a block that were quantized; all are where none are listed."""
        listed = self.modules_in_block_to_quantize
        return listed is None or any(name.endswith(f".{entry}") for name in names for entry in listed)

    @cached_property
    def overrides(self) -> Overrides[Override]:
        """The entries of `dynamic`, ready to match."""
        return Overrides(self.dynamic or {})

    def name_lists(self) -> tuple[NameList, ...]:
        """The modules that the config lists."""
        return tuple(list_overrides(("dynamic",), self.dynamic or ()))
