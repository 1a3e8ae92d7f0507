"""What stands behind an entry point: imported, checked, and its hooks bound."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.abc import InspectLoader
from importlib.metadata import Distribution, EntryPoint
from symtable import symtable

from qload import hooks
from qload.calls import BoundHook, Origin, call
from qload.hooks import DECLARATION, PLUGIN, RUNTIME, Hook
from qload.hookspecs import MethodInfo

_IMPORTS_ALL = re.compile(r"\bimport\s*\*")


@dataclass(frozen=True, slots=True)
class Declaration:
    """A method's plugin, what it says of itself, and its declaration hooks by name."""

    plugin: object
    info: MethodInfo
    hooks: Mapping[str, BoundHook]


def read_origins(points: Iterable[EntryPoint]) -> Iterator[Origin]:
    """Where entry points come from; imports nothing. What a distribution says of itself is read once."""
    known: dict[Distribution | None, tuple[str, str]] = {None: ("unknown", "")}
    for point in points:
        if point.dist is not None and point.dist not in known:
            said = point.dist.metadata
            known[point.dist] = said["Name"], said["Version"]
        yield Origin(point.name, point.value, *known[point.dist], point.load)


def load_declaration(origin: Origin) -> Declaration:
    """Import a method's plugin and check it. Raises PluginError with every fault at once."""
    declaration: Declaration = call(origin, "its declaration", _load_declaration, origin)
    return declaration


def load_runtime(origin: Origin, declaration: Declaration) -> dict[str, Hook]:
    """Import a method's torch hooks and check them. Raises PluginError with every fault at once."""
    target = declaration.info.runtime
    module = declaration.plugin if target is None else call(origin, target, importlib.import_module, target)
    faults = hooks.find_faults(module, *((DECLARATION, RUNTIME) if target is None else (RUNTIME,)))
    found = hooks.collect(module, RUNTIME)
    faults += [fault for fault in hooks.find_runtime_faults(declaration.info, found) if fault not in faults]
    if faults:
        raise origin.blame(*faults, where=target or origin.target)
    return found


def load_plugin(origin: Origin) -> object:
    """Import a plugin of the group `qload.plugins` and check it. Raises PluginError with every fault at once."""
    return call(origin, "it", _load_checked, origin, PLUGIN)


def _load_declaration(origin: Origin) -> Declaration:
    plugin = _load_checked(origin, DECLARATION)
    info = call(origin, "qload_method_info", plugin.qload_method_info)  # type: ignore[attr-defined]
    faults = hooks.find_info_faults(info)
    if not faults:
        faults = list(_find_missing_hooks(origin, plugin, info))
    if faults:
        raise origin.blame(*faults, where=origin.target)
    found = hooks.collect(plugin, DECLARATION)
    return Declaration(plugin, info, {name: BoundHook(origin, name, hook) for name, hook in found.items()})


def _load_checked(origin: Origin, role: str) -> object:
    plugin = call(origin, origin.target, origin.load)
    roles = (role, RUNTIME) if role == DECLARATION and _has_torch_hooks(plugin) else (role,)
    faults = hooks.find_faults(plugin, *roles)
    if faults:
        raise origin.blame(*faults, where=origin.target)
    return plugin


def _has_torch_hooks(plugin: object) -> bool:
    """A plugin that declares no runtime module has its torch hooks beside the declaration."""
    return any(hasattr(plugin, name) for name in hooks.hook_names(RUNTIME))


def _find_missing_hooks(origin: Origin, plugin: object, info: MethodInfo) -> Iterator[str]:
    """What the torch hooks lack, as far as it can be told before torch is needed."""
    if info.runtime is None:
        yield from hooks.find_runtime_faults(info, dir(plugin))
        return
    names = call(origin, info.runtime, read_names, info.runtime)
    if names is not None:
        yield from (f"{info.runtime}: {fault}" for fault in hooks.find_runtime_faults(info, names))


def read_names(module: str) -> frozenset[str] | None:
    """The names that a module's source binds, without importing it; None where that cannot be told.

    Raises ImportError where there is no such module.
    """
    if module in sys.modules:
        return frozenset(dir(sys.modules[module]))
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"no module named {module!r}")
    source = spec.loader.get_source(module) if isinstance(spec.loader, InspectLoader) else None
    if source is None or _IMPORTS_ALL.search(source):
        return None
    # The compiler's own table: a tree of the source takes five times as long.
    symbols = symtable(source, module, "exec").get_symbols()
    names = frozenset(each.get_name() for each in symbols if each.is_assigned() or each.is_imported())
    return None if "__getattr__" in names else names
