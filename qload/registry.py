"""Finds methods and plugins by their entry points, and decides which of them can be used.

Listing names, blocking and conflicts need no import: an entry point's name is its method's name. A plugin is
imported and checked when it is first used.
"""

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from enum import StrEnum
from importlib.metadata import entry_points
from operator import attrgetter
from typing import Any

from qload import hooks
from qload.calls import BoundHook, Origin, PluginWarning, ask, call
from qload.catalogue import Rule
from qload.checkpoint import TensorEntry
from qload.entries import Declaration, load_declaration, load_plugin, load_runtime, read_origins
from qload.errors import MethodConflictError, MethodError, PluginError, UnknownMethodError
from qload.findings import Finding
from qload.hooks import Hook
from qload.hookspecs import MethodInfo
from qload.rules import PluginRule, check_declared, declare_rules, gather_rules

__all__ = ["METHODS_GROUP", "PLUGINS_GROUP", "UNQUANTIZED", "Method", "Origin", "PluginWarning", "Registry", "Status"]

METHODS_GROUP = "qload.methods"
PLUGINS_GROUP = "qload.plugins"
UNQUANTIZED = "unquantized"
"""The name of the method that serves every module to which the checkpoint's method does nothing."""


class Status(StrEnum):
    """Whether a method can be used."""

    READY = "ready"
    BLOCKED = "blocked"
    CONFLICT = "conflict"
    BROKEN = "broken"


class Method:
    """A method whose declaration is registered. Its torch hooks are bound when they are first asked for.

    Copies share it. A pickle names its entry point, and finds the method installed where it is read.
    """

    def __init__(self, origin: Origin, declaration: Declaration) -> None:
        self.origin = origin
        self._declaration = declaration
        self._runtime: Runtime | None = None
        self._rules: Mapping[str, Rule] | None = None

    @property
    def name(self) -> str:
        return self.origin.method

    @property
    def info(self) -> MethodInfo:
        return self._declaration.info

    @property
    def declaration(self) -> Mapping[str, BoundHook]:
        """The declaration hooks by name."""
        return self._declaration.hooks

    @property
    def runtime(self) -> "Runtime":
        """The torch hooks by name; imports the runtime module. Raises PluginError if it is broken."""
        if self._runtime is None:
            self._runtime = Runtime(self, load_runtime(self.origin, self._declaration))
        return self._runtime

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The rules that the method adds, by code. Raises PluginError where it does not declare them properly."""
        if self._rules is None:
            self._rules = declare_rules(self.declaration.get("qload_rules"))
        return self._rules

    def check(self, scheme: Hashable, tensors: Mapping[str, TensorEntry]) -> tuple[Finding, ...]:
        """What the method's own rules find in the tensors of one module. Raises PluginError."""
        hook = self.declaration.get("qload_check")
        findings: tuple[Finding, ...] = hook(scheme, tensors) if hook is not None else ()
        if findings:
            check_declared(findings, self.rules, self.origin)
        return findings

    def __repr__(self) -> str:
        return f"Method({self.origin!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and self.origin == other.origin

    def __hash__(self) -> int:
        return hash(self.origin)

    def __deepcopy__(self, memo: object) -> "Method":
        return self

    def __reduce__(self) -> tuple[Callable[..., "Method"], tuple[str, str, str]]:
        return find_method, (self.name, self.origin.target, self.origin.distribution)


class Runtime(Mapping[str, Hook]):
    """A method's torch hooks by name: plain functions, because they are called hot.

    `proven` are the kinds of layers for which a load has seen them compute what they should.
    """

    def __init__(self, method: Method, found: Mapping[str, Hook]) -> None:
        self.method = method
        self.proven: set[Hashable] = set()
        self._found = dict(found)

    def __getitem__(self, name: str) -> Hook:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __reduce__(self) -> tuple[Callable[[Method], Any], tuple[Method]]:
        return attrgetter("runtime"), (self.method,)


class Registry:
    """The methods and plugins that can be used, as one value to hand around.

    `prefer` maps a method that several distributions register to the one to take; `blocked` methods and plugins
    are never imported.
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
        # pluggy asks the last one first: this is so that names decide, and not the order of installing.
        ordered = sorted(plugins, key=lambda origin: (origin.method, origin.distribution), reverse=True)
        self._plugin_origins = {f"plugin:{number}": origin for number, origin in enumerate(ordered)}
        self._prefer = dict(prefer or {})
        self._methods: dict[str, Method] = {}
        self._broken: dict[str, PluginError] = {}
        self._manager = hooks.Manager()
        self.blocked = frozenset(blocked)
        self._plugins_loaded = False

    @classmethod
    def discover(
        cls, *, prefer: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
    ) -> "Registry":
        """The registry of everything installed.

        QLOAD_DISABLE=a,b blocks methods and plugins; QLOAD_PREFER=a=dist,b=dist settles conflicts where
        `prefer` does not.
        """
        environ = os.environ if environ is None else environ
        chosen = dict(_pairs(environ.get("QLOAD_PREFER", "")))
        installed = entry_points()
        return cls(
            read_origins(installed.select(group=METHODS_GROUP)),
            plugins=read_origins(installed.select(group=PLUGINS_GROUP)),
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
            declaration = load_declaration(origin)
            self._register(declaration.plugin, name, origin)
        except PluginError as error:
            self._broken[name] = error
            warnings.warn(str(error), PluginWarning, stacklevel=2)
            raise
        self._methods[name] = Method(origin, declaration)
        return self._methods[name]

    def methods(self) -> list[Method]:
        """Every method that can be used; the others are left out, broken ones with a warning."""
        return [self._methods[name] for name in self.names if self.status(name) is Status.READY]

    def call_plugins(self, hook: str, *arguments: object) -> Any:
        """The first answer but None to a hook of the group `qload.plugins`; broken plugins are passed over."""
        for bound in self._bind_plugins(hook):
            answer = ask(bound, *arguments)
            if answer is not None:
                return answer
        return None

    def plugin_rules(self) -> tuple[PluginRule, ...]:
        """The rules that the group `qload.plugins` adds; broken plugins are passed over with a warning."""
        return gather_rules(self._bind_plugins("qload_rules"))

    def rules(self) -> tuple[PluginRule, ...]:
        """The rules that all methods and plugins add which can be used; imports every one of them.

        A code that several of them declare stands there as often: `qload.rules.choose_rule` refuses it.
        """
        methods = (method.declaration.get("qload_rules") for method in self.methods())
        return gather_rules([*filter(None, methods), *self._bind_plugins("qload_rules")])

    def kernels(self, method: Method) -> tuple[tuple[Origin, str], ...]:
        """The kernels that a method and all plugins add, as `package.module:Class`, and whose each is.

        Broken plugins are passed over with a warning.
        """
        own = method.declaration.get("qload_kernels")
        bound = [*([own] if own is not None else []), *self._bind_plugins("qload_kernels")]
        return tuple((hook.origin, name) for hook in bound for name in ask(hook) or ())

    def _bind_plugins(self, hook: str) -> Iterator[BoundHook]:
        """A hook of each plugin of the group `qload.plugins` that has it."""
        self._load_plugins()
        for found in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            origin = self._plugin_origins.get(found.plugin_name)
            if origin is not None:
                yield BoundHook(origin, hook, hooks.adapt(hook, found.function))

    def _choose(self, name: str) -> Origin:
        origins = self._origins.get(name, [])
        if not origins:
            raise UnknownMethodError(name, self.names)
        if name in self.blocked:
            raise PluginError(name, ["it is blocked"], "", f"take {name} out of QLOAD_DISABLE")
        if len(origins) == 1:
            return origins[0]
        preferred = [origin for origin in origins if origin.distribution == self._prefer.get(name)]
        if len(preferred) != 1:
            raise MethodConflictError(name, [origin.distribution for origin in origins])
        return preferred[0]

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        for name, origin in self._plugin_origins.items():
            if origin.method in self.blocked:
                continue
            try:
                self._register(load_plugin(origin), name, origin)
            except PluginError as error:
                warnings.warn(str(error), PluginWarning, stacklevel=4)

    def _register(self, plugin: object, name: str, origin: Origin) -> None:
        """Make a plugin known to pluggy; one that stands behind two entry points is known already."""
        if not self._manager.is_registered(plugin):
            call(origin, "registering it", self._manager.register, plugin, name)


def find_method(name: str, target: str, distribution: str) -> Method:
    """The installed method that a pickle names by its entry point and distribution.

    Raises MethodError where it is not installed, or is another one by now.
    """
    method = Registry.discover(prefer={name: distribution}).method(name)
    origin = method.origin
    if (origin.target, origin.distribution) != (target, distribution):
        raise MethodError(
            f"the method {name!r} is not the one that was pickled, which was {target} of {distribution}",
            method=name,
            found=f"{origin.target} of {origin.distribution}",
            remedy=f"install {distribution}, or load the checkpoint again",
        )
    return method


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    return [(name.strip(), value.strip()) for name, _, value in pairs]
