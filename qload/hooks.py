"""The checks that a plugin passes before it is registered, and its hooks as plain functions."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qload import hookspecs
from qload.hookspecs import HOOKSPEC_VERSION, PREFIX, MethodInfo

Hook = Callable[..., Any]

DECLARATION = "declaration"
RUNTIME = "runtime"
PLUGIN = "plugin"

_SPECS: Mapping[str, type] = {
    DECLARATION: hookspecs.MethodSpecs,
    RUNTIME: hookspecs.RuntimeSpecs,
    PLUGIN: hookspecs.PluginSpecs,
}
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    DECLARATION: ("qload_method_info", "qload_scheme_for", "qload_create_weights"),
    RUNTIME: ("qload_dequantize",),
    PLUGIN: (),
}


def hook_names(*roles: str) -> tuple[str, ...]:
    """The names of the hooks of those roles."""
    return tuple(name for role in roles for name in vars(_SPECS[role]) if name.startswith(PREFIX))


def arguments(hook: str) -> tuple[str, ...]:
    """The arguments that the hook of that name is called with."""
    specs = next(specs for specs in _SPECS.values() if hasattr(specs, hook))
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
    return []


def find_capability_faults(info: MethodInfo, runtime: Mapping[str, Hook]) -> list[str]:
    """Where the declared capabilities and the torch hooks disagree."""
    declared, present = info.capabilities.embedding, "qload_embedding" in runtime
    if declared == present:
        return []
    return [f"its capability 'embedding' is {declared}, and it {'has' if present else 'lacks'} qload_embedding"]


def collect(plugin: object, *roles: str) -> dict[str, Hook]:
    """A plugin's hooks of those roles by name, each taking all of its arguments by keyword or position."""
    known = hook_names(*roles)
    return {name: _adapt(name, hook) for name, hook in _hooks(plugin) if name in known}


def _hooks(plugin: object) -> Iterator[tuple[str, Any]]:
    for name in dir(plugin):
        if name.startswith(PREFIX):
            yield name, getattr(plugin, name)


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


def _adapt(name: str, hook: Hook) -> Hook:
    """The hook itself where it takes every argument in order, so that a hot call costs nothing more."""
    expected = arguments(name)
    taken = tuple(inspect.signature(hook).parameters)
    if taken == expected:
        return hook

    def call(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(expected, args, strict=False)) | kwargs
        return hook(**{argument: given[argument] for argument in taken})

    return call
