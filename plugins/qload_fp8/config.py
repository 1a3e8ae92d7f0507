"""fp8's quantization config.

Source of the fields: transformers' `FineGrainedFP8Config`, vLLM's `Fp8Config`, and GPTQModel's quantize_config.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from qload.fields import Provenance, Unread
from qload.patterns import Dialect, NameList, Patterns, and_above


class Fp8Config(Provenance):
    """`quantization_config` of an fp8 checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["fp8"] = "fp8"
    activation_scheme: Literal["dynamic", "static"] | None = Field(
        None, description="How inputs are rounded: by their own sizes, by a stored scale, or not at all (null)."
    )
    weight_block_size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="Rows and columns of the blocks that share a scale; null for one scale for a weight."
    )
    weight_scale_semantics: Literal["inverse"] | None = Field(None, description="Whether scales are to be divided by.")
    modules_to_not_convert: list[str] | None = Field(None, description="Modules that are left alone, by ends of names.")
    ignored_layers: list[str] | None = Field(None, description="The same, as engines write it.")
    fmt: Unread = Field(None, description="The form of the small floats: e4m3.")
    scale_fmt: Unread = Field(None, description="What scales of inputs are rounded to: float, or ue8m0, powers of two.")
    expert_dtype: Unread = Field(None, description="What the weights of experts are rounded to.")
    store_dtype: Unread = Field(None, description="What weights are stored in.")
    bits: Unread = Field(None, description="The bits of a weight, 8.")
    group_size: Unread = Field(None, description="The features that share a scale; weight_block_size says it.")
    weight_scale_method: Unread = Field(None, description="Which weights share a scale; weight_block_size says it.")
    weight_per_tensor: Unread = Field(None, description="Whether a weight has one scale; weight_block_size says it.")
    act_per_tensor: Unread = Field(None, description="Whether inputs have one scale.")
    modules_to_convert: Unread = Field(None, description="The modules that were asked for.")
    kv_cache_scheme: Unread = Field(None, description="How the cache was rounded; its scales say it, too.")
    kv_cache_quant_targets: Unread = Field(None, description="Whose outputs were rounded for the cache.")
    kv_cache_quant_method: Unread = Field(None, description="How the cache was rounded.")
    linear_impl: Unread = Field(None, description="The kernels that are asked for.")
    moe_impl: Unread = Field(None, description="The kernels that are asked for.")

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
