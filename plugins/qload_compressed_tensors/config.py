"""compressed-tensors' quantization config, without importing the package, which needs torch.

Source of the fields, defaults and matching rules: `compressed_tensors.quantization` and its `utils.match`; a
test holds these models against the package's own.
"""

from collections.abc import Iterable
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

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

    num_bits: int = 8
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    group_size: int | None = None
    strategy: Strategy | None = None
    block_structure: tuple[int, int] | None = None
    dynamic: bool | Literal["local"] = False
    actorder: Literal["weight", "group", "static", "dynamic"] | None = None
    scale_dtype: str | None = None
    zp_dtype: str | None = None
    observer: str | None = None
    observer_kwargs: dict[str, Any] | None = None

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

    targets: list[str]
    weights: QuantizationArgs | None = None
    input_activations: QuantizationArgs | None = None
    output_activations: QuantizationArgs | None = None
    format: str | None = None


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

    format: str = "dense"
    targets: list[str] | None = None
    ignore: list[str] | None = None
    global_sparsity: float | None = None
    sparsity_structure: str | None = None

    @field_validator("targets", "ignore")
    @classmethod
    def _check_entries(cls, value: list[str] | None) -> list[str] | None:
        Entries(value)
        return value

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

    location: str

    @property
    def is_computed(self) -> bool:
        """Whether it is applied while computing. Source: compressed-tensors, `TransformLocation.is_online`."""
        return self.location not in ("weight_input", "weight_output")


class TransformScheme(BaseModel):
    """One transform of activations or weights, and where it is applied."""

    model_config = ConfigDict(extra="allow", frozen=True)

    apply: list[TransformArgs] = []


class TransformConfig(BaseModel):
    """All transforms, by their names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config_groups: dict[str, TransformScheme] = {}

    @property
    def computed(self) -> tuple[str, ...]:
        """The transforms that are applied while computing."""
        return tuple(name for name, each in self.config_groups.items() if any(args.is_computed for args in each.apply))


class CompressedTensorsConfig(BaseModel):
    """`quantization_config` of a compressed-tensors checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: str = "compressed-tensors"
    config_groups: dict[str, QuantizationGroup] = {}
    format: str | None = None
    ignore: list[str] | None = None
    kv_cache_scheme: QuantizationArgs | None = None
    quantization_status: str | None = None
    global_compression_ratio: float | None = None
    sparsity_config: SparsityConfig | None = None
    transform_config: TransformConfig | None = None

    @field_validator("ignore")
    @classmethod
    def _check_ignore(cls, value: list[str] | None) -> list[str] | None:
        Entries(value)
        return value

    @field_validator("config_groups")
    @classmethod
    def _check_targets(cls, value: dict[str, QuantizationGroup]) -> dict[str, QuantizationGroup]:
        for group in value.values():
            Patterns(tuple(group.targets), prefixed=True)
        return value

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
