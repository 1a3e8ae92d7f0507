"""bitsandbytes' quantization config.

Source of the fields: transformers' `BitsAndBytesConfig`, which writes the two flags with and without an underscore.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from qload.fields import Edges, Unread
from qload.patterns import Dialect, NameList, Patterns

STORAGE = {
    "uint8": "U8",
    "int8": "I8",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
"""The names of the dtypes that packed weights may be stored as, with their codes."""


class BitsAndBytesConfig(BaseModel):
    """`quantization_config` of a bitsandbytes checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["bitsandbytes"] = "bitsandbytes"
    load_in_4bit: bool = Field(
        False,
        validation_alias=AliasChoices("load_in_4bit", "_load_in_4bit"),
        description="Whether weights have 4 bits.",
    )
    load_in_8bit: bool = Field(
        False,
        validation_alias=AliasChoices("load_in_8bit", "_load_in_8bit"),
        description="Whether weights have 8 bits.",
    )
    llm_int8_threshold: float = Field(
        6.0, ge=0, description="With 8 bits, the size from which features of inputs are computed with unrounded."
    )
    llm_int8_skip_modules: Edges = Field(None, description="Modules that are left alone, by ends of names or regexes.")
    llm_int8_has_fp16_weight: bool = Field(False, description="Whether 8-bit weights keep a copy in 16 bits.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("fp4", description="The 16 values that 4 bits stand for.")
    bnb_4bit_use_double_quant: bool = Field(False, description="Whether scales are quantized, too.")
    bnb_4bit_quant_storage: Literal["uint8", "int8", "float16", "bfloat16", "float32", "float64"] | None = Field(
        None, description="The dtype that packed weights are stored as; uint8 where none is written."
    )
    bnb_4bit_compute_dtype: Unread = Field(None, description="The dtype that 4-bit layers compute in.")
    bnb_4bit_blocksize: Unread = Field(None, description="The values that share a scale, which the weights say, too.")
    llm_int8_enable_fp32_cpu_offload: Unread = Field(None, description="Whether modules on the CPU are left alone.")
    llm_int8_target_modules: Unread = Field(None, description="The modules that were asked for.")
    modules_to_not_convert: Unread = Field(None, description="The modules that were left alone.")
    dequantize: Unread = Field(None, description="Whether transformers is to turn the weights into plain ones.")

    @model_validator(mode="after")
    def _check(self) -> "BitsAndBytesConfig":
        if self.load_in_4bit == self.load_in_8bit:
            which = "both" if self.load_in_4bit else "neither"
            raise ValueError(f"one of load_in_4bit and load_in_8bit is true, and here {which}")
        return self

    @property
    def storage(self) -> str:
        """The dtype that packed weights are stored as."""
        return STORAGE[self.bnb_4bit_quant_storage or "uint8"]

    def excludes(self, names: Iterable[str]) -> bool:
        """Whether a module is left alone."""
        return self.excluded.match(names)

    @cached_property
    def excluded(self) -> Patterns:
        """The entries of `llm_int8_skip_modules`, ready to match."""
        return Patterns(tuple(self.llm_int8_skip_modules or ()), Dialect.EDGE)

    def name_lists(self) -> tuple[NameList, ...]:
        """The modules that the config lists."""
        return (NameList(("llm_int8_skip_modules",), self.excluded.entries, dialect=Dialect.EDGE),)
