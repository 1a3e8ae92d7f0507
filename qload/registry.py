"""Finds methods and plugins by their entry points, checks them, and binds their hooks.

Listing names, blocking and conflicts need no import: an entry point's name is its method's name. A plugin is
imported and checked when it is first used.
"""

import importlib
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from qload import hooks, hookspecs
from qload.errors import MethodConflictError, MethodError, PluginError, UnknownMethodError
from qload.hooks import DECLARATION, PLUGIN, RUNTIME, Hook
from qload.hookspecs import PREFIX, PROJECT, MethodInfo

METHODS_GROUP = "qload.methods"
PLUGINS_GROUP = "qload.plugins"
UNQUANTIZED = "unquantized"
"""The name of the method that serves every module to which the checkpoint's method does nothing."""


class PluginWarning(UserWarning):
    """A plugin that is set aside because it is broken."""


class Status(StrEnum):
    """Whether a method can be used."""

    READY = "ready"
    BLOCKED = "blocked"
    CONFLICT = "conflict"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a method comes from: an entry point of a distribution, by name and version."""

    method: str
    target: str
    distribution: str
    version: str
    load: Callable[[], object] = field(repr=False, compare=False)


@dataclass(slots=True)
class Method:
    """A method whose declaration is registered. Its torch hooks are bound when they are first asked for."""

    name: str
    info: MethodInfo
    origin: Origin
    declaration: Mapping[str, Hook]
    _bind_runtime: Callable[["Method"], dict[str, Hook]] = field(repr=False)
    _runtime: dict[str, Hook] | None = field(default=None, repr=False)

    @property
    def runtime(self) -> Mapping[str, Hook]:
        """The torch hooks by name; imports the runtime module. Raises PluginError if it is broken."""
        if self._runtime is None:
            self._runtime = self._bind_runtime(self)
        return self._runtime


class _Manager(pluggy.PluginManager):
    """Takes every function with the prefix of the hooks as a hook, marked or not."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        marked = super().parse_hookimpl_opts(plugin, name)
        if marked is not None or not name.startswith(PREFIX):
            return marked
        return {}


class Registry:
    """The methods and plugins that can be used, as one value to hand around.

    `prefer` maps a method that several distributions register to the one to take; `blocked` methods are
    never imported.
    """

    def __init__(
        self,
        origins: Iterable[Origin] = (),
        *,
        plugins: Iterable[Origin] = (),
        prefer: Mapping[str, str] | None = None,
        blocked: Iterable[str] = (),
    ) -> None:
        self._origins: dict[str, list[Origin]] = defaultdict(list)
        for origin in origins:
            self._origins[origin.method].append(origin)
        self._plugin_origins = tuple(plugins)
        self._prefer = dict(prefer or {})
        self._methods: dict[str, Method] = {}
        self._broken: dict[str, PluginError] = {}
        self._manager = _Manager(PROJECT)
        for specs in (hookspecs.MethodSpecs, hookspecs.RuntimeSpecs, hookspecs.PluginSpecs):
            self._manager.add_hookspecs(specs)
        self.blocked = frozenset(blocked)
        self._plugins_loaded = False

    @classmethod
    def discover(
        cls, *, prefer: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
    ) -> "Registry":
        """The registry of everything installed.

        QLOAD_DISABLE=a,b blocks methods; QLOAD_PREFER=a=dist,b=dist settles conflicts where `prefer`
        does not.
        """
        environ = os.environ if environ is None else environ
        chosen = dict(_pairs(environ.get("QLOAD_PREFER", "")))
        return cls(
            map(_origin, entry_points(group=METHODS_GROUP)),
            plugins=map(_origin, entry_points(group=PLUGINS_GROUP)),
            prefer=chosen | dict(prefer or {}),
            blocked=[name.strip() for name in environ.get("QLOAD_DISABLE", "").split(",")],
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Every method's name, usable or not; imports nothing."""
        return tuple(sorted(self._origins))

    def origins(self, name: str) -> tuple[Origin, ...]:
        """Where the method of that name comes from."""
        return tuple(self._origins.get(name, ()))

    def status(self, name: str) -> Status:
        """Whether the method of that name can be used; imports it to find out."""
        try:
            self.method(name)
        except MethodConflictError:
            return Status.CONFLICT
        except MethodError:
            return Status.BLOCKED if name in self.blocked else Status.BROKEN
        return Status.READY

    def method(self, name: str) -> Method:
        """The method of that name, imported and checked.

        Raises UnknownMethodError, MethodConflictError, or PluginError with every fault at once.
        """
        if name in self._methods:
            return self._methods[name]
        origin = self._choose(name)
        if name in self._broken:
            raise self._broken[name]
        try:
            self._methods[name] = self._load(origin)
        except PluginError as error:
            self._broken[name] = error
            warnings.warn(str(error), PluginWarning, stacklevel=2)
            raise
        return self._methods[name]

    def methods(self) -> list[Method]:
        """Every method that can be used; the others are left out, broken ones with a warning."""
        return [self._methods[name] for name in self.names if self.status(name) is Status.READY]

    def call_plugins(self, hook: str, **arguments: object) -> Any:
        """Call a hook of the group `qload.plugins` on every plugin."""
        if not self._plugins_loaded:
            self._plugins_loaded = True
            for origin in self._plugin_origins:
                self._load_plugin(origin)
        return getattr(self._manager.hook, hook)(**arguments)

    def _choose(self, name: str) -> Origin:
        origins = self._origins.get(name, [])
        if not origins:
            raise UnknownMethodError(name, self.names)
        if name in self.blocked:
            raise PluginError(name, ["it is blocked by QLOAD_DISABLE"])
        if len(origins) == 1:
            return origins[0]
        preferred = [origin for origin in origins if origin.distribution == self._prefer.get(name)]
        if len(preferred) != 1:
            raise MethodConflictError(name, [origin.distribution for origin in origins])
        return preferred[0]

    def _load(self, origin: Origin) -> Method:
        plugin = _import(origin)
        roles = _roles(plugin)
        faults = hooks.find_faults(plugin, *roles)
        if faults:
            raise PluginError(origin.method, faults, origin.target)
        info = _call_info(plugin, origin)
        faults = hooks.find_info_faults(info)
        if faults:
            raise PluginError(origin.method, faults, origin.target)
        self._manager.register(plugin, name=origin.method)
        return Method(origin.method, info, origin, hooks.collect(plugin, DECLARATION), self._runtime)

    def _runtime(self, method: Method) -> dict[str, Hook]:
        name, target = method.name, method.info.runtime
        if target is None:
            module: object = self._manager.get_plugin(name)
        else:
            module = _attempt(name, target, lambda: importlib.import_module(target))
        faults = hooks.find_faults(module, *((DECLARATION, RUNTIME) if target is None else (RUNTIME,)))
        runtime = hooks.collect(module, RUNTIME)
        faults += hooks.find_capability_faults(method.info, runtime)
        if faults:
            raise PluginError(name, faults, target or method.origin.target)
        if target is not None and not self._manager.is_registered(module):
            self._manager.register(module, name=f"{name}:runtime")
        return runtime

    def _load_plugin(self, origin: Origin) -> None:
        try:
            plugin = _import(origin)
            faults = hooks.find_faults(plugin, PLUGIN)
            if faults:
                raise PluginError(origin.method, faults, origin.target)
        except PluginError as error:
            warnings.warn(str(error), PluginWarning, stacklevel=3)
        else:
            self._manager.register(plugin, name=f"plugin:{origin.method}")


def _roles(plugin: object) -> tuple[str, ...]:
    """A plugin that declares no runtime module has its torch hooks beside the declaration."""
    torch_hooks = any(hasattr(plugin, name) for name in hooks.hook_names(RUNTIME))
    return (DECLARATION, RUNTIME) if torch_hooks else (DECLARATION,)


def _call_info(plugin: Any, origin: Origin) -> MethodInfo:
    info: MethodInfo = _attempt(origin.method, origin.target, plugin.qload_method_info)
    return info


def _import(origin: Origin) -> object:
    return _attempt(origin.method, origin.target, origin.load)


def _attempt(method: str, target: str, action: Callable[[], Any]) -> Any:
    """Run a plugin's code; whatever it raises becomes a PluginError, so that it hurts nobody else."""
    try:
        return action()
    except Exception as error:
        raise PluginError(method, [f"{type(error).__name__}: {error}"], target) from error


def _origin(point: EntryPoint) -> Origin:
    distribution = point.dist
    return Origin(
        point.name,
        point.value,
        distribution.name if distribution is not None else "unknown",
        distribution.version if distribution is not None else "",
        point.load,
    )


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    return [(name.strip(), value.strip()) for name, _, value in pairs]
