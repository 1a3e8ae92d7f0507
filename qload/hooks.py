"""The checks that a plugin passes before it is registered, and its hooks as plain functions."""

import inspect
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pluggy
from pydantic import BaseModel

from qload import hookspecs
from qload.hookspecs import HOOKSPEC_VERSION, PREFIX, PROJECT, Capabilities, MethodInfo

Hook = Callable[..., Any]

DECLARATION = "declaration"
RUNTIME = "runtime"
PLUGIN = "plugin"

_SPECS: Mapping[str, tuple[type, ...]] = {
    DECLARATION: (hookspecs.MethodSpecs, hookspecs.SharedSpecs),
    RUNTIME: (hookspecs.RuntimeSpecs,),
    PLUGIN: (hookspecs.PluginSpecs, hookspecs.SharedSpecs),
}
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    DECLARATION: ("qload_method_info", "qload_scheme_for", "qload_create_weights"),
    RUNTIME: ("qload_dequantize",),
    PLUGIN: (),
}
_CAPABILITY_HOOKS: Mapping[str, str] = {
    "embedding": "qload_embedding",
    "kv_cache": "qload_cache",
    "quantize": "qload_quantize",
}
"""The capabilities that are hooks."""


def hook_names(*roles: str) -> tuple[str, ...]:
    """The names of the hooks of those roles, once each."""
    names = (name for role in roles for specs in _SPECS[role] for name in vars(specs) if name.startswith(PREFIX))
    return tuple(dict.fromkeys(names))


def arguments(hook: str) -> tuple[str, ...]:
    """The arguments that the hook of that name is called with."""
    specs = next(specs for role in _SPECS.values() for specs in role if hasattr(specs, hook))
    return tuple(inspect.signature(getattr(specs, hook)).parameters)[1:]


def find_faults(plugin: object, *roles: str) -> list[str]:
    """Everything that is wrong with a plugin's hooks; empty if it may be registered."""
    return [*_unknown_names(plugin, roles), *_wrong_signatures(plugin, roles), *_missing_hooks(plugin, roles)]


def find_info_faults(info: object) -> list[str]:
    """Everything that is wrong with what `qload_method_info` returned."""
    if not isinstance(info, MethodInfo):
        return [f"qload_method_info returns {type(info).__name__}, not MethodInfo"]
    if info.hookspec_version != HOOKSPEC_VERSION:
        return [f"it is made for version {info.hookspec_version} of the hooks, and this is {HOOKSPEC_VERSION}"]
    model = info.config
    sound = {
        "summary, a text": isinstance(info.summary, str),
        "config, a pydantic model's class or None": model is None
        or (isinstance(model, type) and issubclass(model, BaseModel)),
        "capabilities, a Capabilities": isinstance(info.capabilities, Capabilities),
        "runtime, a module's name or None": isinstance(info.runtime, str | None),
        "presets, configs by name": _are_presets(info.presets),
    }
    return [f"its MethodInfo has no proper {field}" for field, is_sound in sound.items() if not is_sound]


def _are_presets(presets: object) -> bool:
    return isinstance(presets, Mapping) and all(
        isinstance(name, str) and isinstance(config, Mapping) for name, config in presets.items()
    )


def find_runtime_faults(info: MethodInfo, runtime: Container[str]) -> list[str]:
    """What the names of the torch hooks tell: a required one that is missing, a capability that is not there."""
    missing = [f"it lacks {name}, which is required" for name in _REQUIRED[RUNTIME] if name not in runtime]
    return missing + _find_capability_faults(info, runtime)


def _find_capability_faults(info: MethodInfo, runtime: Container[str]) -> list[str]:
    return [
        f"its capability {capability!r} is {declared}, and it {'has' if hook in runtime else 'lacks'} {hook}"
        for capability, hook in _CAPABILITY_HOOKS.items()
        if ((declared := getattr(info.capabilities, capability)) is True) != (hook in runtime)
    ]


def collect(plugin: object, *roles: str) -> dict[str, Hook]:
    """A plugin's hooks of those roles by name, each taking all of its arguments by keyword or position."""
    known = hook_names(*roles)
    return {name: adapt(name, hook) for name, hook in _hooks(plugin) if name in known}


def is_hook(name: str, value: object) -> bool:
    """Whether a plugin's attribute is meant as a hook; its package may be called like one, and be imported."""
    return name.startswith(PREFIX) and not isinstance(value, ModuleType)


class Manager(pluggy.PluginManager):
    """Takes every function with the prefix of the hooks as a hook, marked or not."""

    def __init__(self) -> None:
        super().__init__(PROJECT)
        for specs in dict.fromkeys(specs for role in _SPECS.values() for specs in role):
            self.add_hookspecs(specs)

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        marked = super().parse_hookimpl_opts(plugin, name)
        if marked is not None or not is_hook(name, getattr(plugin, name, None)):
            return marked
        return {}


def _hooks(plugin: object) -> Iterator[tuple[str, Any]]:
    for name in dir(plugin):
        if name.startswith(PREFIX) and is_hook(name, value := getattr(plugin, name)):
            yield name, value


def _unknown_names(plugin: object, roles: tuple[str, ...]) -> Iterator[str]:
    known = hook_names(*roles)
    for name, _ in _hooks(plugin):
        if name not in known:
            yield f"{name} is not a hook; the hooks are {', '.join(known)}"


def _wrong_signatures(plugin: object, roles: tuple[str, ...]) -> Iterator[str]:
    known = hook_names(*roles)
    for name, hook in _hooks(plugin):
        if name not in known:
            continue
        if not callable(hook):
            yield f"{name} is not a function"
            continue
        try:
            parameters = inspect.signature(hook).parameters.values()
        except (TypeError, ValueError):
            yield f"{name} is a function whose arguments cannot be read"
            continue
        for parameter in parameters:
            yield from _wrong_parameter(name, parameter)


def _wrong_parameter(hook: str, parameter: inspect.Parameter) -> Iterator[str]:
    expected = arguments(hook)
    if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        yield f"{hook} takes {parameter}, and hooks take plain arguments"
    elif parameter.name not in expected:
        given = ", ".join(expected) or "none"
        yield f"{hook} takes an argument {parameter.name!r}; it is called with {given}"
    elif parameter.default is not inspect.Parameter.empty:
        yield f"{hook} has a default for {parameter.name!r}, which would never be used"


def _missing_hooks(plugin: object, roles: tuple[str, ...]) -> Iterator[str]:
    present = {name for name, _ in _hooks(plugin)}
    for role in roles:
        for name in _REQUIRED[role]:
            if name not in present:
                yield f"it lacks {name}, which is required"


@dataclass(frozen=True, slots=True)
class AdaptedHook:
    """A hook that is called with all of its arguments, and passes on those that it takes."""

    function: Hook
    expected: tuple[str, ...]
    taken: tuple[str, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self.expected, args, strict=False)) | kwargs
        return self.function(**{argument: given[argument] for argument in self.taken})


def adapt(name: str, hook: Hook) -> Hook:
    """The hook itself where it takes every argument in order, so that a hot call costs nothing more."""
    expected = arguments(name)
    taken = tuple(inspect.signature(hook).parameters)
    return hook if taken == expected else AdaptedHook(hook, expected, taken)
