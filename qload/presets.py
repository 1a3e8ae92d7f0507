"""How a plain checkpoint is to be quantized while it is loaded: by a preset's name, or by a method's config."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from qload.errors import MethodConflictError, MethodError
from qload.quantization import Quantization, read_config
from qload.registry import UNQUANTIZED, Method, Registry

Asked = str | Mapping[str, Any]
"""A preset's name, or what a checkpoint's `quantization_config` would say."""


def choose_quantization(asked: Asked, *, registry: Registry | None = None) -> Quantization:
    """The quantization that is asked for, for building layers, and for loading a plain checkpoint into them.

    Raises MethodError where no method has that preset, or the method cannot quantize, or refuses the config.
    """
    registry = registry if registry is not None else Registry.discover()
    method, section = _find(asked, registry)
    if not method.info.capabilities.quantize:
        raise MethodError(
            "the method cannot quantize a checkpoint while it is loaded",
            method=method.name,
            found=method.name,
            remedy=f"ask for one of: {_list(registry)}",
        )
    try:
        config = read_config(method, section)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the config"
        raise MethodError(
            f"the method refuses the config: {place}: {fault['msg']}", method=method.name, found=method.name
        ) from error
    return Quantization(method, registry.method(UNQUANTIZED), config, is_to_be_made=True)


def list_presets(registry: Registry) -> dict[str, tuple[Method, ...]]:
    """The methods that have a preset of each name."""
    presets: dict[str, tuple[Method, ...]] = {}
    for method in registry.methods():
        for name in method.info.presets:
            presets[name] = (*presets.get(name, ()), method)
    return dict(sorted(presets.items()))


def _find(asked: Asked, registry: Registry) -> tuple[Method, Mapping[str, Any]]:
    if isinstance(asked, str):
        method = _find_preset(asked, registry)
        return method, method.info.presets[asked]
    name = asked.get("quant_method")
    if not isinstance(name, str):
        raise MethodError("the config names no quant_method", method="", found=repr(name))
    return registry.method(name), asked


def _find_preset(name: str, registry: Registry) -> Method:
    methods = list_presets(registry).get(name, ())
    if len(methods) == 1:
        return methods[0]
    if methods:
        names = [f"{method.name} of {method.origin.distribution}" for method in methods]
        raise MethodConflictError(name, names)
    raise MethodError(
        "there is no such preset",
        method="",
        found=repr(name),
        remedy=f"ask for one of: {_list(registry)}; or give a config with its quant_method",
    )


def _list(registry: Registry) -> str:
    return ", ".join(list_presets(registry)) or "none"
