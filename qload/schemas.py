"""JSON Schemas of the configs that the installed methods read, for editors and other tools.

They are made of the pydantic models that loading reads configs with. A field that no model knows is left open: the
loader takes it, and validating warns of it.
"""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from qload.configs.unknown import list_aliases
from qload.errors import MethodError
from qload.registry import Method, Registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"
BASE = "https://raw.githubusercontent.com/qload/qload/main/schemas/"
CONFIG_SCHEMA = "config"
_SECTION = "quantization_config"

Schema = dict[str, Any]


def make_schemas(registry: Registry) -> dict[str, Schema]:
    """Every schema by its name: of each method's config, and of a model's config."""
    methods = {method.name: make_schema(method) for method in registry.methods() if method.info.config is not None}
    return {**methods, CONFIG_SCHEMA: _make_config_schema(tuple(methods))}


def make_schema(method: Method) -> Schema:
    """The schema of a method's config. Raises MethodError for a method without one."""
    if method.info.config is None:
        raise MethodError("the method has no config", method=method.name, found=method.name)
    return _finish(method.info.config, method.name, f"The {_SECTION} of {method.name}: {method.info.summary}.")


def dump(schema: Schema) -> str:
    """The schema as its file holds it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


class _Generator(GenerateJsonSchema):
    """Writes no titles for fields, which would say their names once more."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def _finish(model: type[BaseModel], name: str, description: str) -> Schema:
    made = model.model_json_schema(schema_generator=_Generator, mode="validation")
    definitions = made.pop("$defs", {})
    for each, schema in _pair(model, made, definitions):
        _open(each, schema)
    head = {"$schema": DIALECT, "$id": f"{BASE}{name}.json", "title": name}
    about = {"description": description} if description else {}
    return {**head, **made, **about, "title": name, **({"$defs": definitions} if definitions else {})}


def _pair(
    model: type[BaseModel], made: Schema, definitions: dict[str, Schema]
) -> Iterator[tuple[type[BaseModel], Schema]]:
    """Each model with its schema."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[Any] = [model]
    while waiting:
        each = waiting.pop()
        if isinstance(each, type) and issubclass(each, BaseModel):
            if each.__name__ not in found:
                found[each.__name__] = each
                waiting += [field.annotation for field in each.model_fields.values()]
        else:
            waiting += getattr(each, "__args__", ())
    yield model, made
    yield from ((found[name], schema) for name, schema in definitions.items() if name in found)


def _open(model: type[BaseModel], schema: Schema) -> None:
    """Let a field be written under each of its names, and by none of them where it must not be missing."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    for name, field in model.model_fields.items():
        first, *others = list_aliases(name, field)
        properties.update({other: properties[first] for other in others if first in properties})
        if others and first in required:
            required.remove(first)
            schema.setdefault("allOf", []).append({"anyOf": [{"required": [each]} for each in (first, *others)]})
    if not required:
        schema.pop("required", None)
    if schema.get("additionalProperties") is True:
        del schema["additionalProperties"]


def _make_config_schema(methods: tuple[str, ...]) -> Schema:
    """The schema of a model's config: of what it says of quantization, that of the method which it names."""
    branches = [
        {
            "if": {"properties": {"quant_method": {"const": name}}, "required": ["quant_method"]},
            "then": {"$ref": f"{name}.json"},
        }
        for name in methods
    ]
    section = {
        "description": "How the weights are quantized; nothing, where they are not.",
        "type": ["object", "null"],
        "properties": {
            "quant_method": {
                "description": "The method that the rest is of.",
                "type": "string",
                "examples": list(methods),
            }
        },
        "allOf": branches,
    }
    dtype = {"type": ["string", "null"], "examples": ["bfloat16", "float16", "float32"]}
    return {
        "$schema": DIALECT,
        "$id": f"{BASE}{CONFIG_SCHEMA}.json",
        "title": "config.json",
        "description": "A model's config.json, of which the parts on quantization are described.",
        "type": "object",
        "properties": {
            _SECTION: {"$ref": "#/$defs/section"},
            "compression_config": {"$ref": "#/$defs/section"},
            "text_config": {"type": ["object", "null"], "properties": {_SECTION: {"$ref": "#/$defs/section"}}},
            "dtype": {"description": "What the model computes in.", **dtype},
            "torch_dtype": {"description": "The same, as older configs write it.", **dtype},
        },
        "$defs": {"section": section},
    }
