"""QQQ's quantization config.

Source of the fields: GPTQModel's QQQConfig, and the QQQ project's own, which says wbits.
"""

from typing import Literal

from pydantic import AliasChoices, ConfigDict, Field

from qload.fields import GroupSize, Provenance, Unread


class QqqConfig(Provenance):
    """`quantization_config` of a QQQ checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["qqq"] = "qqq"
    bits: int = Field(
        4, validation_alias=AliasChoices("bits", "wbits"), description="Bits of a weight; only 4 are supported."
    )
    group_size: GroupSize = Field(128, description="Input features that share a scale; -1 for all of them.")
    lm_head: bool = Field(False, description="Whether the head is quantized, too.")
    dynamic: Unread = Field(None, description="What differs, by regexes of names; the stored tensors say it, too.")
