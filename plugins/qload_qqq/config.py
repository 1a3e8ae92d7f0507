"""QQQ's quantization config.

Source of the fields: GPTQModel's QQQConfig, and the QQQ project's own, which says wbits.
"""

from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator


class QqqConfig(BaseModel):
    """`quantization_config` of a QQQ checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["qqq"] = "qqq"
    bits: int = Field(4, validation_alias=AliasChoices("bits", "wbits"))
    group_size: int = 128
    lm_head: bool = False

    @field_validator("group_size")
    @classmethod
    def _check_group_size(cls, value: int) -> int:
        if value != -1 and value <= 0:
            raise ValueError("group_size is -1 or positive")
        return value
