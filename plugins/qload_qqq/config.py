"""QQQ's quantization config.

Source of the fields: GPTQModel's QQQConfig, and the QQQ project's own, which says wbits.
"""

from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from qload.fields import GroupSize


class QqqConfig(BaseModel):
    """`quantization_config` of a QQQ checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["qqq"] = "qqq"
    bits: int = Field(4, validation_alias=AliasChoices("bits", "wbits"))
    group_size: GroupSize = 128
    lm_head: bool = False
