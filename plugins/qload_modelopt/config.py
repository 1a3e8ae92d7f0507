"""ModelOpt's quantization config: in config.json, in hf_quant_config.json, or in both.

Source of the fields: ModelOpt's `get_quant_config`, which writes hf_quant_config.json, and its
`convert_hf_quant_config_format`, which renames them for config.json and drops some.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator, model_validator

from qload.fields import Unread
from qload.patterns import Dialect, Meaning, NameList, Patterns, and_above
from qload_modelopt.schemes import MIXED, find_states

SIDE_FILE = "hf_quant_config.json"
NESTED = "quantization"
"""Below this key hf_quant_config.json has everything but the producer; so has config.json of older exports."""

_RENAMED = {"ignore": "exclude_modules", "kv_cache_scheme": "kv_cache_quant_algo"}


class LayerConfig(BaseModel):
    """What `quantized_layers` says of one module."""

    model_config = ConfigDict(extra="allow", frozen=True)

    quant_algo: str = Field(description="The format of its weights and inputs.")
    group_size: NonNegativeInt | None = Field(None, description="Input features that share a scale.")
    has_zero_point: bool = Field(False, description="Whether groups have zero-points, which is not supported.")
    pre_quant_scale: Unread = Field(None, description="Whether inputs are scaled first, as the tensors say.")
    awq_block_size: Unread = Field(None, description="Another name of group_size.")
    kv_cache_quant_algo: Unread = Field(None, description="The format of the cache.")

    @field_validator("quant_algo")
    @classmethod
    def _raise_case(cls, value: str) -> str:
        return value.upper()


class ModelOptConfig(BaseModel):
    """`quantization_config` of a ModelOpt checkpoint, in any of its shapes."""

    model_config = ConfigDict(extra="allow")

    quant_method: str = "modelopt"
    quant_algo: str | None = Field(None, description="The format of weights and inputs, as NVFP4; or MIXED_PRECISION.")
    kv_cache_quant_algo: str | dict[str, Any] | None = Field(
        None, description="The format of keys and values, by a name as FP8, or by its type and bits."
    )
    exclude_modules: list[str] = Field(
        default_factory=list,
        description="Modules that are left alone; entries may have wildcards.",
        json_schema_extra={"type": ["array", "null"]},
    )
    group_size: NonNegativeInt | None = Field(None, description="Input features that share a scale.")
    has_zero_point: bool = Field(False, description="Whether groups have zero-points, which is not supported.")
    quantized_layers: dict[str, LayerConfig] = Field(
        default_factory=dict, description="With MIXED_PRECISION, the settings of each module."
    )
    producer: Unread = Field(None, description="The tool that wrote the checkpoint, and its version.")
    config_groups: Unread = Field(None, description="The same once more, in the manner of another format.")
    pre_quant_scale: Unread = Field(None, description="Whether inputs are scaled first, as the tensors say.")
    smoothquant_val: Unread = Field(None, description="How much outliers were smoothed.")
    clamp_val: Unread = Field(None, description="Between which values inputs were held.")
    use_meta_recipe: Unread = Field(None, description="Whether another recipe of fp8 was followed.")
    awq_block_size: Unread = Field(None, description="Another name of group_size.")
    mamba_ssm_cache_quant_algo: Unread = Field(None, description="The format of the states of other layers.")
    kv_cache_quant_config: Unread = Field(None, description="The format of the cache once more.")
    format: Unread = Field(None, description="How the tensors are stored.")
    quantization_status: Unread = Field(None, description="How far quantizing has come.")
    targets: Unread = Field(None, description="The classes of modules that are quantized.")
    sparsity: Unread = Field(None, description="How the weights were thinned out.")
    sparse_attention_config: Unread = Field(None, description="How attention was thinned out.")

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, value: Any) -> Any:
        return flatten(value) if isinstance(value, Mapping) else value

    @field_validator("quant_algo")
    @classmethod
    def _raise_case(cls, value: str | None) -> str | None:
        return value.upper() if value is not None else None

    @field_validator("kv_cache_quant_algo")
    @classmethod
    def _name_cache(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        """One word for a cache, however it is written; what is none of ours stays as it is, to be refused."""
        try:
            return find_states(value).upper() if value else None
        except ValueError:
            return value

    @field_validator("exclude_modules", mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        return [] if value is None else value

    @model_validator(mode="after")
    def _check(self) -> "ModelOptConfig":
        if self.quant_algo is None and not self.has_cache:
            raise ValueError("quant_algo is missing, without which nothing is quantized")
        if (self.quant_algo == MIXED) != bool(self.quantized_layers):
            raise ValueError(f"quant_algo {MIXED} and quantized_layers come together")
        return self

    @property
    def has_cache(self) -> bool:
        """Whether keys and values are to be quantized, in whatever dtype."""
        return bool(self.kv_cache_quant_algo)

    def excludes(self, names: Iterable[str]) -> bool:
        """Whether an entry, which may have wildcards, is a module's name or that of a module above it."""
        return self.excluded.match(and_above(names))

    @cached_property
    def excluded(self) -> Patterns:
        """The entries of `exclude_modules`, ready to match, as TensorRT-LLM does, whose configs these are."""
        return Patterns(tuple(self.exclude_modules), Dialect.WILDCARD)

    def settings_for(self, names: Iterable[str]) -> LayerConfig | None:
        """What is said of a module: of the checkpoint, or with mixed precision of it or of a module above it."""
        if self.quant_algo is None:
            return None
        if self.quant_algo != MIXED:
            return LayerConfig(
                quant_algo=self.quant_algo, group_size=self.group_size, has_zero_point=self.has_zero_point
            )
        return next((self.quantized_layers[name] for name in and_above(names) if name in self.quantized_layers), None)

    def name_lists(self) -> tuple[NameList, ...]:
        """The modules that the config lists."""
        return (
            NameList(("exclude_modules",), tuple(self.exclude_modules), dialect=Dialect.WILDCARD, below=True),
            NameList(("quantized_layers",), tuple(self.quantized_layers), Meaning.TARGET, below=True),
        )


def flatten(section: Mapping[str, Any]) -> dict[str, Any]:
    """A config of any shape with hf_quant_config.json's names, none below another.

    The group size may stand in `config_groups` alone.
    """
    nested = section.get(NESTED)
    flat = {**section, **nested} if isinstance(nested, Mapping) else dict(section)
    flat.pop(NESTED, None)
    for other, name in _RENAMED.items():
        if other in flat:
            flat.setdefault(name, flat.pop(other))
    if flat.get("group_size") is None and not flat.get("quantized_layers"):
        flat["group_size"] = _find_group_size(flat.get("config_groups"))
    return flat


def merge(section: Mapping[str, Any], side: Mapping[str, Any]) -> dict[str, Any]:
    """What the first of two sources says, with what only the second does; neither says anything by null."""
    return {**flatten(side), **{key: value for key, value in flatten(section).items() if value is not None}}


def _find_group_size(groups: object) -> object:
    """The first group size of weights, among groups in the manner of compressed-tensors."""
    if not isinstance(groups, Mapping):
        return None
    weights = (group.get("weights") for group in groups.values() if isinstance(group, Mapping))
    return next((each["group_size"] for each in weights if isinstance(each, Mapping) and each.get("group_size")), None)
