"""HQQ's quantization config.

Source of the fields: transformers' `HqqConfig`, whose `quant_config` is hqq's `BaseQuantizeConfig`, or one of these for
each of some linear tags; and `prepare_for_hqq_linear` in transformers' integration, which applies them.
"""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from qload.fields import Unread

WEIGHTS = "weight_quant_params"


class WeightParams(BaseModel):
    """How the weights of a module are quantized."""

    model_config = ConfigDict(extra="allow")

    nbits: float = Field(description="Bits of a weight.")
    group_size: PositiveInt | None = Field(None, description="Values that share a scale; null for a whole row.")
    axis: Literal[0, 1] = Field(0, description="Along which axis the groups lie.")
    channel_wise: bool = Field(True, description="Whether each group has a scale of its own.")
    view_as_float: bool = Field(False, description="Whether packed weights are stored as floats.")
    optimize: bool = Field(True, description="Whether zero-points were optimised.")
    round_zero: bool = Field(False, description="Whether zero-points were rounded.")
    bitpack: Unread = Field(None, description="Whether values are packed, which the weights say, too.")
    compute_dtype: Unread = Field(None, description="The dtype that layers compute in.")


class ModuleParams(BaseModel):
    """What hqq is told of a module: of its weights, and of the scales and zero-points, which it no longer quantizes."""

    model_config = ConfigDict(extra="allow")

    weight_quant_params: WeightParams
    scale_quant_params: dict[str, Any] | None = Field(None, description="How scales were quantized, not read.")
    zero_quant_params: dict[str, Any] | None = Field(None, description="How zero-points were quantized, not read.")
    offload_meta: bool = Field(False, description="Whether scales and zero-points were kept elsewhere.")


class HqqConfig(BaseModel):
    """`quantization_config` of an HQQ checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["hqq"] = "hqq"
    quant_config: ModuleParams | dict[str, ModuleParams | None] = Field(
        description="The settings of all modules, or of each linear tag; a tag with null is left alone."
    )
    skip_modules: list[str] | None = Field(
        default_factory=lambda: ["lm_head"], description="Names and linear tags of modules that are left alone."
    )
    dequantize: Unread = Field(None, description="Whether transformers is to turn the weights into plain ones.")

    @field_validator("quant_config", mode="before")
    @classmethod
    def _tell_apart(cls, value: Any) -> Any:
        """Settings of all modules, or of each tag: validated as what they are, so that a fault is named once."""
        if not isinstance(value, dict):
            raise ValueError("is not an object of settings")
        if WEIGHTS in value:
            return ModuleParams.model_validate(value)
        if not value or not all(
            each is None or (isinstance(each, dict) and WEIGHTS in each) for each in value.values()
        ):
            raise ValueError(f"has neither {WEIGHTS} nor, for each linear tag, settings that have")
        return {tag: each and ModuleParams.model_validate(each) for tag, each in value.items()}

    def params(self, names: Iterable[str]) -> ModuleParams | None:
        """The settings of the module with those names; None where it is left alone."""
        tags = [tag for name in names for tag in (name, name_tag(name))]
        if not set(self.skip_modules or ()).isdisjoint(tags):
            return None
        if isinstance(self.quant_config, ModuleParams):
            return self.quant_config
        return next((self.quant_config[tag] for tag in tags if tag in self.quant_config), None)


def name_tag(name: str) -> str:
    """A module's linear tag: its name without `model`, `layers` and numbers, as `name_to_linear_tag` makes it."""
    return ".".join(word for word in name.split(".") if word not in ("model", "layers") and not word.isnumeric())
