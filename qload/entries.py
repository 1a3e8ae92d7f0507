"""What stands behind an entry point: imported, checked, and its hooks bound."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.abc import InspectLoader
from importlib.metadata import EntryPoint

from qload import hooks
from qload.calls import BoundHook, Origin, call
from qload.hooks import DECLARATION, PLUGIN, RUNTIME, Hook
from qload.hookspecs import MethodInfo


@dataclass(frozen=True, slots=True)
class Declaration:
    """A method's plugin, what it says of itself, and its declaration hooks by name."""

    plugin: object
    info: MethodInfo
    hooks: Mapping[str, BoundHook]


def read_origin(point: EntryPoint) -> Origin:
    """Where an entry point comes from; imports nothing."""
    distribution = point.dist
    return Origin(
        point.name,
        point.value,
        distribution.name if distribution is not None else "unknown",
        distribution.version if distribution is not None else "",
        point.load,
    )


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
    names = frozenset(_bound_names(ast.parse(source))) if source is not None else frozenset("*")
    return None if names & {"*", "__getattr__"} else names


def _bound_names(tree: ast.Module) -> Iterator[str]:
    """Names bound anywhere in a module, `*` for those of a whole other one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
