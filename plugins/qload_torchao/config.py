"""torchao's quantization config.

Source of the fields: transformers' `TorchAoConfig`. `quant_type` is the config of torchao itself, as
`config_to_dict` writes it; older ones are a word with `quant_type_kwargs`.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qload.errors import UntoldError
from qload.fields import Edges, Unread
from qload.geometry import Kind
from qload.patterns import REGEX_PREFIX, Dialect, NameList, Patterns
from qload_torchao.values import untag

BY_NAME = ("FqnToConfig", "ModuleFqnToConfig")
DEFAULT = "_default"

Settings = tuple[str, Mapping[str, Any]]
"""The name of one of torchao's config classes, and its fields."""


class TorchaoConfig(BaseModel):
    """`quantization_config` of a torchao checkpoint."""

    model_config = ConfigDict(extra="allow")

    quant_method: Literal["torchao"] = "torchao"
    quant_type: str | dict[str, Any] | None = Field(
        None, description="Under the key default, a config of torchao as its config_to_dict writes it; before, a word."
    )
    quant_type_kwargs: dict[str, Any] = Field(default_factory=dict, description="What belonged to the word.")
    modules_to_not_convert: Edges = Field(None, description="Modules that are left alone, by ends of names or regexes.")
    include_input_output_embeddings: bool = Field(False, description="Whether tables and heads are quantized, too.")
    untie_embedding_weights: bool = Field(False, description="Whether the head is no longer tied to the table.")
    dequantize: Unread = Field(None, description="Whether transformers is to turn the weights into plain ones.")
    quant_config: Unread = Field(None, description="The config of torchao in another form.")

    @field_validator("quant_type")
    @classmethod
    def _check_type(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if isinstance(value, dict):
            if value.keys() != {"default"}:
                raise ValueError("quant_type has one key, default, for the config of torchao")
            _list_named(untag(value["default"]))
        return value

    def settings_for(self, names: Iterable[str], kind: Kind, is_stored: bool) -> Settings | None:
        """What the config does to a module's weight: None for nothing.

        Where the checkpoint stores it quantized, the lists of what is left alone need not be asked.
        Raises ValueError for a config that says too little.
        """
        names = tuple(names)
        if not is_stored and (self.excluded.match(names) or not self._reaches(kind)):
            return None
        if not isinstance(self.quant_type, dict):
            raise UntoldError(
                f"quant_type {self.quant_type!r} says too little of how weights are stored, and the weight files' "
                "metadata says nothing"
            )
        return self._choose(names)

    def _reaches(self, kind: Kind) -> bool:
        return kind is Kind.LINEAR or self.include_input_output_embeddings

    def _choose(self, names: tuple[str, ...]) -> Settings | None:
        """By the name of the weight or of the module, before a regex that matches either, before the default."""
        base: Settings = untag(self.quant_type["default"]) if isinstance(self.quant_type, dict) else ("", {})
        if base[0] not in BY_NAME:
            return base
        listed = dict(_list_named(base))
        both = [*(f"{name}.weight" for name in names), *names]
        exact = (listed[name] for name in both if name in listed)
        matched = (settings for pattern, settings in self.matched if pattern.match(both))
        return next(exact, next(matched, listed.get(DEFAULT)))

    @cached_property
    def excluded(self) -> Patterns:
        """The entries of `modules_to_not_convert`, ready to match."""
        return Patterns(tuple(self.modules_to_not_convert or ()), Dialect.EDGE)

    def name_lists(self) -> tuple[NameList, ...]:
        """The modules that the config lists."""
        return (NameList(("modules_to_not_convert",), self.excluded.entries, dialect=Dialect.EDGE),)

    @cached_property
    def matched(self) -> tuple[tuple[Patterns, Settings | None], ...]:
        """The regexes of a config by name with their settings, in order; they match whole names."""
        base = untag(self.quant_type["default"]) if isinstance(self.quant_type, dict) else ("", {})
        return tuple((_whole(key), settings) for key, settings in _list_named(base) if key.startswith(REGEX_PREFIX))


def _list_named(settings: Settings) -> list[tuple[str, Settings | None]]:
    """What a config by name lists. Raises ValueError for what is not one, and for a regex that does not compile."""
    name, fields = settings
    if name not in BY_NAME:
        return []
    table = fields.get("fqn_to_config") or fields.get("module_fqn_to_config") or {}
    if not isinstance(table, Mapping):
        raise ValueError(f"{name} does not list configs by name")
    for key in table:
        if key.startswith(REGEX_PREFIX):
            _whole(key)
    return [(key, None if value is None else untag(value)) for key, value in table.items()]


def _whole(key: str) -> Patterns:
    return Patterns((rf"(?:{key.removeprefix(REGEX_PREFIX)})\Z",), Dialect.REGEX)
