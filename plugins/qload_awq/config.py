"""AWQ's quantization config, in config.json or quant_config.json.

Source of the fields: AutoAWQ's AwqConfig, which uses other names in its side file.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, field_validator

from qload.fields import GroupSize, Provenance, Unread
from qload.patterns import Dialect, NameList, Patterns


class AwqConfig(Provenance):
    """`quantization_config` of an AWQ checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["awq"] = "awq"
    bits: int = Field(
        4, validation_alias=AliasChoices("bits", "w_bit"), description="Bits of a weight; only 4 are supported."
    )
    group_size: GroupSize = Field(
        128,
        validation_alias=AliasChoices("group_size", "q_group_size"),
        description="Input features that share a scale; -1 for all of them.",
    )
    zero_point: bool = Field(True, description="Whether groups have zero-points.")
    version: str = Field(
        "gemm",
        validation_alias=AliasChoices("version", "checkpoint_format", "format"),
        description="How the weights are packed: gemm, gemv or gemv_fast.",
    )
    modules_to_not_convert: list[str] | None = Field(
        None, description="Modules that are left alone: an entry is any part of a name."
    )
    extra_config: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Settings of modules that differ, by name; here only 16 bits, which leave a module as it is.",
    )
    do_fuse: Unread = Field(None, description="Whether transformers is to fuse modules.")
    fuse_max_seq_len: Unread = Field(None, description="The most tokens that fused modules make room for.")
    modules_to_fuse: Unread = Field(None, description="The modules that transformers is to fuse.")
    duo_scaling: Unread = Field(None, description="How scales were searched.")
    apply_clip: Unread = Field(None, description="Whether weights were clipped.")

    @field_validator("version")
    @classmethod
    def _lower(cls, value: str) -> str:
        return value.lower()

    @field_validator("extra_config")
    @classmethod
    def _check_extra(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        differing = [name for name, entry in value.items() if entry.get("bits") not in (16, 32)]
        if differing:
            raise ValueError(f"has settings of its own for {differing[0]}, which this packing does not support")
        return value

    def excludes(self, names: Iterable[str]) -> bool:
        """Whether a module is left alone: an entry is any part of its name, or in `extra_config` the whole of it."""
        names = tuple(names)
        return self.excluded.match(names) or not self.extra_config.keys().isdisjoint(names)

    @cached_property
    def excluded(self) -> Patterns:
        """The entries of `modules_to_not_convert`, ready to match."""
        return Patterns(tuple(self.modules_to_not_convert or ()), Dialect.SUBSTRING)

    def name_lists(self) -> tuple[NameList, ...]:
        """The modules that the config lists."""
        return (NameList(("modules_to_not_convert",), self.excluded.entries, dialect=Dialect.SUBSTRING),)
