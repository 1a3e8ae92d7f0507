"""compressed-tensors' quantization config, without importing the package, which needs torch.

Source of the fields, defaults and matching rules: `compressed_tensors.quantization` and its `utils.match`; a
test holds these models against the package's own.
"""

from collections.abc import Iterable
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qload.fields import Prefixed, Unread
from qload.hookspecs import ModuleInfo
from qload.patterns import REGEX_PREFIX, Meaning, NameList, Patterns

DENSE = "dense"
MASK = "bitmask"


class Strategy(StrEnum):
    """What one scale serves."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    GROUP = "group"
    BLOCK = "block"
    TOKEN = "token"
    TENSOR_GROUP = "tensor_group"
    ATTN_HEAD = "attn_head"


class QuantizationArgs(BaseModel):
    """How weights or activations are quantized."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_bits: int = Field(8, description="Bits of a value.")
    type: Literal["int", "float"] = Field("int", description="What values are rounded to.")
    symmetric: bool = Field(True, description="Whether there are no zero-points.")
    group_size: int | None = Field(None, description="Features that share a scale; -1 for all of them.")
    strategy: Strategy | None = Field(None, description="What shares a scale.")
    block_structure: tuple[int, int] | None = Field(
        None,
        description="With the strategy block, the rows and columns that share a scale.",
        json_schema_extra={
            "anyOf": [
                {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
                {"type": "string", "pattern": r"^\d+x\d+$"},
                {"type": "null"},
            ]
        },
    )
    dynamic: bool | Literal["local"] = Field(
        False, description="Whether scales are found while computing; local: those of groups, beside a stored one."
    )
    actorder: Literal["weight", "group", "static", "dynamic"] | None = Field(
        None,
        description="In which order columns were quantized; with group, an index has their groups.",
        json_schema_extra={
            "anyOf": [{"enum": ["weight", "group", "static", "dynamic"]}, {"type": ["boolean", "null"]}]
        },
    )
    scale_dtype: str | None = Field(None, description="What scales are stored in.")
    zp_dtype: str | None = Field(None, description="What zero-points are stored in.")
    observer: Unread = Field(None, description="What looked for scales.")
    observer_kwargs: Unread = Field(None, description="Settings of what looked for scales.")

    @field_validator("type", "strategy", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("scale_dtype", "zp_dtype")
    @classmethod
    def _shorten(cls, value: str | None) -> str | None:
        """Configs write dtypes as "torch.uint8"."""
        return value.removeprefix("torch.") if value is not None else None

    @field_validator("block_structure", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Older configs write blocks as "128x128"."""
        return tuple(value.split("x")) if isinstance(value, str) else value

    @field_validator("actorder", mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        """Older configs write true for activation order by group."""
        return {True: "group", False: None}.get(value, value) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check(self) -> "QuantizationArgs":
        if self.strategy in (Strategy.GROUP, Strategy.TENSOR_GROUP) and (self.group_size or 0) <= 0:
            raise ValueError(f"strategy {self.strategy} needs a positive group_size")
        if (self.strategy is Strategy.BLOCK) != (self.block_structure is not None):
            raise ValueError("strategy block and block_structure come together")
        if self.orders_groups and self.effective_strategy not in (Strategy.GROUP, Strategy.TENSOR_GROUP):
            raise ValueError(f"actorder needs groups, and the strategy is {self.effective_strategy}")
        return self

    @property
    def effective_strategy(self) -> Strategy:
        """The strategy, or what the group size implies where none is written."""
        if self.strategy is not None:
            return self.strategy
        if self.group_size is None:
            return Strategy.TENSOR
        return Strategy.GROUP if self.group_size > 0 else Strategy.CHANNEL

    @property
    def orders_groups(self) -> bool:
        """Whether columns are assigned to groups by an index."""
        return self.actorder in ("group", "dynamic")


class QuantizationGroup(BaseModel):
    """What is done to the modules that the targets match."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    targets: list[Prefixed] = Field(description="Names of modules, regexes after re:, and names of classes as Linear.")
    weights: QuantizationArgs | None = Field(None, description="How weights are quantized; null for not at all.")
    input_activations: QuantizationArgs | None = Field(None, description="How inputs are quantized.")
    output_activations: QuantizationArgs | None = Field(None, description="How outputs are quantized.")
    format: str | None = Field(None, description="How tensors are stored, as pack-quantized.")


class Entries:
    """A list of module names, regexes with `re:` before them, and class names."""

    def __init__(self, entries: Iterable[str] | None) -> None:
        written = tuple(entries or ())
        self.names = Patterns(written, prefixed=True)
        self.classes = frozenset(written)

    def match(self, names: Iterable[str], classes: Iterable[str]) -> bool:
        """Whether an entry is one of a module's names, a regex for one, or one of its classes."""
        return self.names.match(names) or not self.classes.isdisjoint(classes)


class SparsityConfig(BaseModel):
    """How zeros are left out of the weights: those of the targets, but for what is ignored."""

    model_config = ConfigDict(extra="allow", frozen=True)

    format: str = Field("dense", description="How zeros are left out.")
    targets: list[Prefixed] | None = Field(None, description="The modules whose zeros are left out.")
    ignore: list[Prefixed] | None = Field(None, description="The modules that are left alone.")
    global_sparsity: Unread = Field(None, description="The share of zeros.")
    sparsity_structure: Unread = Field(None, description="Where the zeros lie, as 2:4.")
    registry_requires_subclass: Unread = Field(None, description="What the package notes for itself.")

    def applies(self, module: ModuleInfo) -> bool:
        """Whether a module's zeros are left out; where no targets are written, its stored tensors tell."""
        if self.format == DENSE or self.ignored.match(module.names, module.classes):
            return False
        if self.targets is None:
            return MASK in module.stored
        return self.targeted.match(module.names, module.classes)

    @cached_property
    def ignored(self) -> Entries:
        """The entries of `ignore`, ready to match."""
        return Entries(self.ignore)

    @cached_property
    def targeted(self) -> Entries:
        """The entries of `targets`, ready to match."""
        return Entries(self.targets)


class TransformArgs(BaseModel):
    """Where a transform is applied: to activations, or to weights, which are stored transformed."""

    model_config = ConfigDict(extra="allow", frozen=True)

    location: str = Field(description="What is transformed, as input or weight_output.")
    targets: Unread = Field(None, description="The modules at which it is applied.")
    inverse: Unread = Field(None, description="Whether it is undone there.")
    ignore: Unread = Field(None, description="The modules that are left alone.")

    @property
    def is_computed(self) -> bool:
        """Whether it is applied while computing. Source: compressed-tensors, `TransformLocation.is_online`."""
        return self.location not in ("weight_input", "weight_output")


class TransformScheme(BaseModel):
    """One transform of activations or weights, and where it is applied."""

    model_config = ConfigDict(extra="allow", frozen=True)

    apply: list[TransformArgs] = Field(default=[], description="Where it is applied.")
    type: Unread = Field(None, description="The kind of matrix.")
    randomize: Unread = Field(None, description="Whether the matrix is random.")
    requires_grad: Unread = Field(None, description="Whether the matrix was trained.")
    head_dim: Unread = Field(None, description="The size of blocks of the matrix.")
    precision: Unread = Field(None, description="What is computed in.")


class TransformConfig(BaseModel):
    """All transforms, by their names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config_groups: dict[str, TransformScheme] = Field(default={}, description="The transforms.")

    @property
    def computed(self) -> tuple[str, ...]:
        """The transforms that are applied while computing."""
        return tuple(name for name, each in self.config_groups.items() if any(args.is_computed for args in each.apply))


class CompressedTensorsConfig(BaseModel):
    """`quantization_config` of a compressed-tensors checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: str = "compressed-tensors"
    config_groups: dict[str, QuantizationGroup] = Field(
        default={}, description="Modules that are quantized alike, and how; the group that names a module best has it."
    )
    format: str | None = Field(None, description="How tensors are stored, where a group does not say it.")
    ignore: list[Prefixed] | None = Field(
        None, description="What is left alone: names of modules, regexes after re:, and names of classes."
    )
    kv_cache_scheme: QuantizationArgs | None = Field(None, description="How keys and values are quantized.")
    quantization_status: Unread = Field(None, description="How far quantizing has come: compressed, when it is done.")
    global_compression_ratio: Unread = Field(None, description="The share of the plain model's size.")
    sparsity_config: SparsityConfig | None = Field(None, description="How zeros are left out of the weights.")
    transform_config: TransformConfig | None = Field(None, description="What is rotated before it is rounded.")
    moe_sparsity_config: Unread = Field(None, description="Which experts were taken out.")
    version: Unread = Field(None, description="The version of the package.")
    provider: Unread = Field(None, description="The tool that wrote the checkpoint.")
    autoround_version: Unread = Field(None, description="The version of the tool that chose how to round.")
    run_compressed: Unread = Field(None, description="Whether transformers is to compute with what is stored.")
    dequantize: Unread = Field(None, description="Whether transformers is to turn the weights into plain ones.")
    use_optimized_inference: Unread = Field(None, description="Whether transformers is to use faster kernels.")

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if "config_groups" not in self.model_fields_set and not (self.sparsity_config or self.kv_cache_scheme):
            raise ValueError("config_groups is missing, without which nothing is quantized")
        return self

    def ignores(self, names: Iterable[str], classes: Iterable[str]) -> bool:
        """Whether an entry of `ignore` is the module's name, a regex for the name, or one of its classes."""
        return self.ignored.match(names, classes)

    def group_for(self, names: Iterable[str], classes: Iterable[str]) -> QuantizationGroup | None:
        """The group of a module: by exact name before regex before class, each in alphabetical order."""
        names, classes = tuple(names), tuple(classes)
        by_name = (group for _, pattern, group in self.targeted if pattern.match(names))
        by_class = (group for target, _, group in self.targeted if target in classes)
        return next(by_name, None) or next(by_class, None)

    @cached_property
    def ignored(self) -> Entries:
        """The entries of `ignore`, ready to match."""
        return Entries(self.ignore)

    @cached_property
    def targeted(self) -> tuple[tuple[str, Patterns, QuantizationGroup], ...]:
        """Each target, ready to match, and its group; the last one written wins where two name the same."""
        groups = {target: group for group in self.config_groups.values() for target in group.targets}
        ordered = sorted(groups, key=lambda target: (REGEX_PREFIX in target, target))
        return tuple((target, Patterns((target,), prefixed=True), groups[target]) for target in ordered)

    def name_lists(self) -> tuple[NameList, ...]:
        """The modules that the config lists."""
        groups = (
            NameList(("config_groups", name, "targets"), tuple(group.targets), Meaning.TARGET, prefixed=True)
            for name, group in self.config_groups.items()
        )
        return (NameList(("ignore",), tuple(self.ignore or ()), prefixed=True), *groups)
