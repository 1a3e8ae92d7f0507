"""Quark's quantization config.

Source of the fields and of the order in which they apply: AMD Quark's `QConfig`, `QLayerConfig` and `QTensorConfig`
(`from_dict` of each) and `get_layer_quant_config`; `re:` entries of `exclude`: vLLM's `should_ignore_layer`.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from qload.fields import Unread
from qload.patterns import Dialect, Meaning, NameList, Patterns


class TensorSpec(BaseModel):
    """How one tensor is quantized."""

    model_config = ConfigDict(extra="allow", frozen=True)

    dtype: str = Field(description="What values are rounded to, as fp8_e4m3 or uint4.")
    qscheme: Literal["per_tensor", "per_channel", "per_group", "per_block"] | None = Field(
        None, description="What shares a scale."
    )
    ch_axis: int | None = Field(
        None, validation_alias=AliasChoices("ch_axis", "axis"), description="The axis of channels or groups."
    )
    group_size: int | None = Field(None, description="Features that share a scale.")
    block_size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="Rows and columns of the blocks that share a scale."
    )
    is_dynamic: bool | None = Field(
        None, validation_alias=AliasChoices("is_dynamic", "dynamic"), description="Whether scales are found on the way."
    )
    symmetric: bool | None = Field(None, description="Whether there are no zero-points.")
    scale_format: str | None = Field(None, description="What scales are rounded to, as e8m0.")
    scale_calculation_mode: Literal["even", "floor", "ceil"] | None = Field(
        None, description="How scales are rounded to powers of two."
    )
    mx_element_dtype: str | None = Field(None, description="With dtype mx, what values are rounded to.")
    zero_point_type: Literal["int32", "float32"] | None = Field(None, description="What zero-points are.")
    is_scale_quant: bool = Field(False, description="Whether it quantizes the scales of the spec before it.")
    round_method: Unread = Field(None, description="How values were rounded.")
    scale_type: Unread = Field(None, description="What scales were.")
    observer_cls: Unread = Field(None, description="What looked for scales.")
    observer_kwargs: Unread = Field(None, description="Settings of what looked for scales.")
    enable_buffer_reuse: Unread = Field(None, description="A setting of what looked for scales.")
    max_input_numel: Unread = Field(None, description="A setting of what looked for scales.")
    percentile: Unread = Field(None, description="A setting of what looked for scales.")
    qat_spec: Unread = Field(None, description="Settings of training.")


def _as_sequence(value: Any) -> Any:
    """A tensor that is quantized in several stages has a list of specs; one that is not quantized has none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, Mapping) else value


def _allow_one(schema: dict[str, Any]) -> None:
    """In the JSON Schema of a field, a spec or none in place of a list."""
    items = schema.pop("items")
    schema.pop("type")
    schema["anyOf"] = [items, {"type": "array", "items": items}, {"type": "null"}]


Specs = Annotated[tuple[TensorSpec, ...], BeforeValidator(_as_sequence), Field(json_schema_extra=_allow_one)]


class LayerConfig(BaseModel):
    """What is done to the tensors of a layer."""

    model_config = ConfigDict(extra="allow", frozen=True)

    weight: Specs = ()
    input_tensors: Specs = ()
    output_tensors: Specs = ()
    bias: Specs = ()
    target_device: Unread = Field(None, description="What the layer was quantized for.")


class Export(BaseModel):
    """How the checkpoint was written."""

    model_config = ConfigDict(extra="allow", frozen=True)

    weight_format: str = Field("real_quantized", description="Whether weights are stored rounded.")
    pack_method: Literal["reorder", "order"] = Field("reorder", description="The order of values in a word.")
    kv_cache_group: Unread = Field(None, description="Which layers feed the cache.")
    min_kv_scale: Unread = Field(None, description="The least scale of the cache.")
    weight_merge_groups: Unread = Field(None, description="Which layers were fused.")
    custom_mode: Unread = Field(None, description="Whose form the config has.")


def _or_nothing(value: Any) -> Any:
    """Older versions write null where nothing is named."""
    return {} if value is None else value


def _allow_null(schema: dict[str, Any]) -> None:
    """In the JSON Schema of a field, what it takes before it is checked."""
    inner = {key: schema.pop(key) for key in tuple(schema) if key not in ("description", "title", "default")}
    schema["anyOf"] = [inner, {"type": "null"}]


Layers = Annotated[dict[str, LayerConfig], BeforeValidator(_or_nothing), Field(json_schema_extra=_allow_null)]


def _check_entry(value: str) -> str:
    Patterns((value,), Dialect.WILDCARD, prefixed=True)
    return value


class QuarkConfig(BaseModel):
    """`quantization_config` of a Quark checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["quark"] = "quark"
    global_quant_config: LayerConfig = Field(description="What is done to linear layers that nothing else is said of.")
    layer_quant_config: Layers = Field(default_factory=dict, description="What is done to layers, by names or globs.")
    layer_type_quant_config: Layers = Field(default_factory=dict, description="What is done to layers, by classes.")
    kv_cache_quant_config: Layers = Field(
        default_factory=dict, description="What is done to the layers whose outputs go into the cache."
    )
    kv_cache_post_rope: bool = Field(
        False, description="Whether keys are quantized in the cache, and not as outputs, which lack positions."
    )
    exclude: list[Annotated[str, AfterValidator(_check_entry)]] | None = Field(
        None, description="Modules that are left alone, by globs, or regexes after re:."
    )
    export: Annotated[Export, BeforeValidator(_or_nothing)] = Field(
        Export(), description="How the checkpoint was written.", json_schema_extra=_allow_null
    )
    algo_config: list[dict[str, Any]] | dict[str, Any] | None = Field(
        None, description="What was done before quantizing."
    )
    softmax_quant_spec: dict[str, Any] | None = Field(None, description="How attention was rounded.")
    quant_mode: Unread = Field(None, description="How the model was traced.")
    version: Unread = Field(None, description="The version of the config.")
    log_severity_level: Unread = Field(None, description="How much the tool logged.")
    pre_quant_opt_config: Unread = Field(None, description="What was done before quantizing.")
    pre_optimization: Unread = Field(None, description="What was done before quantizing.")
    kv_cache_group: Unread = Field(None, description="Which layers feed the cache.")
    min_kv_scale: Unread = Field(None, description="The least scale of the cache.")
    pack_method: Unread = Field(None, description="The order of values in a word, which export says.")
    weight_format: Unread = Field(None, description="Whether weights are stored rounded, which export says.")
    custom_mode: Unread = Field(None, description="Whose form the config has.")
    quantization_config: Unread = Field(None, description="The config in another form.")
    dequantize: Unread = Field(None, description="Whether transformers is to turn the weights into plain ones.")

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
