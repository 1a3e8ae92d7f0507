"""Quark's quantization config.

Source of the fields and of the order in which they apply: AMD Quark's `QConfig`, `QLayerConfig` and `QTensorConfig`
(`from_dict` of each) and `get_layer_quant_config`; `re:` entries of `exclude`: vLLM's `should_ignore_layer`.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, field_validator

from qload.patterns import Dialect, Meaning, NameList, Patterns


class TensorSpec(BaseModel):
    """How one tensor is quantized."""

    model_config = ConfigDict(extra="allow", frozen=True)

    dtype: str
    qscheme: Literal["per_tensor", "per_channel", "per_group", "per_block"] | None = None
    ch_axis: int | None = Field(None, validation_alias=AliasChoices("ch_axis", "axis"))
    group_size: int | None = None
    block_size: tuple[PositiveInt, PositiveInt] | None = None
    is_dynamic: bool | None = Field(None, validation_alias=AliasChoices("is_dynamic", "dynamic"))
    symmetric: bool | None = None
    scale_format: str | None = None
    scale_calculation_mode: Literal["even", "floor", "ceil"] | None = None
    mx_element_dtype: str | None = None
    zero_point_type: Literal["int32", "float32"] | None = None
    is_scale_quant: bool = False
    """Whether it quantizes the scales of the spec before it."""


def _as_sequence(value: Any) -> Any:
    """A tensor that is quantized in several stages has a list of specs; one that is not quantized has none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, Mapping) else value


Specs = Annotated[tuple[TensorSpec, ...], BeforeValidator(_as_sequence)]


class LayerConfig(BaseModel):
    """What is done to the tensors of a layer."""

    model_config = ConfigDict(extra="allow", frozen=True)

    weight: Specs = ()
    input_tensors: Specs = ()
    output_tensors: Specs = ()
    bias: Specs = ()


class Export(BaseModel):
    """How the checkpoint was written."""

    model_config = ConfigDict(extra="allow", frozen=True)

    weight_format: str = "real_quantized"
    pack_method: Literal["reorder", "order"] = "reorder"


def _or_nothing(value: Any) -> Any:
    """Older versions write null where nothing is named."""
    return {} if value is None else value


Layers = Annotated[dict[str, LayerConfig], BeforeValidator(_or_nothing)]


class QuarkConfig(BaseModel):
    """`quantization_config` of a Quark checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["quark"] = "quark"
    global_quant_config: LayerConfig
    layer_quant_config: Layers = Field(default_factory=dict)
    layer_type_quant_config: Layers = Field(default_factory=dict)
    kv_cache_quant_config: Layers = Field(default_factory=dict)
    kv_cache_post_rope: bool = False
    """Whether keys are quantized in the cache, and not yet as outputs, which positions are not in."""
    exclude: list[str] | None = None
    export: Annotated[Export, BeforeValidator(_or_nothing)] = Export()
    algo_config: list[dict[str, Any]] | dict[str, Any] | None = None
    softmax_quant_spec: dict[str, Any] | None = None

    @field_validator("exclude")
    @classmethod
    def _check_exclude(cls, value: list[str] | None) -> list[str] | None:
        Patterns(tuple(value or ()), Dialect.WILDCARD, prefixed=True)
        return value

    @property
    def algorithms(self) -> tuple[dict[str, Any], ...]:
        """What was done before quantizing; older versions write one without a list."""
        if isinstance(self.algo_config, dict):
            return (self.algo_config,)
        return tuple(self.algo_config or ())

    def excludes(self, names: Iterable[str]) -> bool:
        """Whether a module is left alone, by a glob for its name, or a regex that begins with `re:`."""
        return self.excluded.match(names)

    def cache_config(self, names: Iterable[str]) -> LayerConfig | None:
        """What is done to a module whose outputs are keys or values of a cache."""
        return _find(self.kv_cache_quant_config, self.cached, names)

    def named_config(self, names: Iterable[str]) -> LayerConfig | None:
        """What is done to a module by its name: the exact name, or else the first glob that matches."""
        return _find(self.layer_quant_config, self.layered, names)

    def typed_config(self, classes: Iterable[str]) -> LayerConfig | None:
        """What is done to a module by its class."""
        classes = tuple(classes)
        found = (layer for name, layer in self.layer_type_quant_config.items() if name.rpartition(".")[2] in classes)
        return next(found, None)

    def feeds_cache(self, names: Iterable[str]) -> bool:
        """Whether a module's outputs are quantized not as such, but in the cache that takes them up."""
        return self.kv_cache_post_rope and self.cache_config(names) is not None

    @cached_property
    def excluded(self) -> Patterns:
        """The entries of `exclude`, ready to match."""
        return Patterns(tuple(self.exclude or ()), Dialect.WILDCARD, prefixed=True)

    @cached_property
    def cached(self) -> tuple[tuple[str, Patterns], ...]:
        """The entries of `kv_cache_quant_config`, ready to match."""
        return _globs(self.kv_cache_quant_config)

    @cached_property
    def layered(self) -> tuple[tuple[str, Patterns], ...]:
        """The entries of `layer_quant_config`, ready to match."""
        return _globs(self.layer_quant_config)

    def name_lists(self) -> tuple[NameList, ...]:
        """The modules that the config lists."""
        return (
            NameList(("exclude",), tuple(self.exclude or ()), dialect=Dialect.WILDCARD, prefixed=True),
            NameList(("layer_quant_config",), tuple(self.layer_quant_config), Meaning.TARGET, Dialect.WILDCARD),
        )


def _globs(names: Iterable[str]) -> tuple[tuple[str, Patterns], ...]:
    return tuple((name, Patterns((name,), Dialect.WILDCARD)) for name in names)


def _find(
    layers: Mapping[str, LayerConfig], globs: tuple[tuple[str, Patterns], ...], names: Iterable[str]
) -> LayerConfig | None:
    names = tuple(names)
    exact = (layers[name] for name in names if name in layers)
    return next(exact, None) or next((layers[name] for name, glob in globs if glob.match(names)), None)
