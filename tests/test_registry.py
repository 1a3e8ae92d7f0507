"""The registry: checked before registration, blocked, conflicting, quarantined; never by load order."""

import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import Tensor

from qload.errors import MethodConflictError, PluginError, UnknownMethodError
from qload.hookspecs import HOOKSPEC_VERSION, Capabilities, MethodInfo, ModuleInfo
from qload.registry import UNQUANTIZED, Origin, PluginWarning, Registry, Status


def make_plugin(**hooks: Any) -> types.SimpleNamespace:
    """A plugin in one object, of which `hooks` replaces some hooks, or takes some away with None."""

    def qload_method_info() -> MethodInfo:
        return MethodInfo("a method", None, Capabilities())

    def qload_scheme_for(config: Any, module: ModuleInfo) -> str:
        return f"{config} {module.name}"

    def qload_create_weights() -> tuple[()]:
        return ()

    def qload_dequantize(layer: Any) -> Tensor:
        raise NotImplementedError

    found = {
        "qload_method_info": qload_method_info,
        "qload_scheme_for": qload_scheme_for,
        "qload_create_weights": qload_create_weights,
        "qload_dequantize": qload_dequantize,
    }
    return types.SimpleNamespace(**{name: hook for name, hook in {**found, **hooks}.items() if hook is not None})


def origin(name: str, plugin: object, distribution: str = "dist") -> Origin:
    def load() -> object:
        if isinstance(plugin, Exception):
            raise plugin
        return plugin

    return Origin(name, f"{name}_module", distribution, "1.0", load)


def faults_of(plugin: object) -> tuple[str, ...]:
    registry = Registry([origin("m", plugin)])
    with pytest.warns(PluginWarning), pytest.raises(PluginError) as caught:
        registry.method("m")
    return caught.value.faults


def test_a_strangers_plugin_is_accepted() -> None:
    method = Registry([origin("m", make_plugin())]).method("m")
    assert method.info.summary == "a method"
    assert set(method.runtime) == {"qload_dequantize"}


def test_an_unknown_method_names_the_known_ones() -> None:
    registry = Registry([origin("a", make_plugin()), origin("b", make_plugin())])
    with pytest.raises(UnknownMethodError, match="use one of: a, b") as caught:
        registry.method("c")
    assert caught.value.known == ("a", "b")


def test_every_fault_is_reported_at_once() -> None:
    def qload_dequantise(layer: Any) -> None: ...
    def qload_claim(config: Any, place: Any) -> None: ...
    def qload_check(scheme: Any, tensors: Any = ()) -> None: ...
    def qload_apply(layer: Any, *arguments: Any) -> None: ...

    plugin = make_plugin(
        qload_dequantise=qload_dequantise,
        qload_claim=qload_claim,
        qload_check=qload_check,
        qload_apply=qload_apply,
        qload_embedding=3,
        qload_scheme_for=None,
    )
    text = "\n".join(faults_of(plugin))
    assert "qload_dequantise is not a hook" in text
    assert "qload_claim takes an argument 'place'" in text
    assert "qload_check has a default for 'tensors'" in text
    assert "qload_apply takes *arguments" in text
    assert "qload_embedding is not a function" in text
    assert "it lacks qload_scheme_for, which is required" in text


def test_a_failed_registration_leaves_nothing_behind() -> None:
    registry = Registry([origin("bad", make_plugin(qload_scheme_for=None)), origin("good", make_plugin())])
    with pytest.warns(PluginWarning, match="bad"), pytest.raises(PluginError):
        registry.method("bad")
    assert registry.method("good").name == "good"
    assert [method.name for method in registry.methods()] == ["good"]
    assert [name for name, _ in registry._manager.list_name_plugin()] == ["good"]


def test_another_version_of_the_hooks_is_refused() -> None:
    info = MethodInfo("old", None, Capabilities(), hookspec_version=HOOKSPEC_VERSION + 1)
    (fault,) = faults_of(make_plugin(qload_method_info=lambda: info))
    assert str(HOOKSPEC_VERSION + 1) in fault


def test_something_else_than_an_info_is_refused() -> None:
    def qload_method_info() -> dict[str, str]:
        return {}

    plugin = make_plugin(qload_method_info=qload_method_info)
    assert faults_of(plugin) == ("qload_method_info returns dict, not MethodInfo",)


def test_a_builtin_is_no_hook() -> None:
    assert faults_of(make_plugin(qload_claim=dict)) == ("qload_claim is a function whose arguments cannot be read",)


def test_a_plugin_that_does_not_import_is_quarantined_loudly() -> None:
    registry = Registry([origin("bad", ImportError("no such thing")), origin("good", make_plugin())])
    with pytest.warns(PluginWarning, match="ImportError: no such thing"):
        assert registry.status("bad") is Status.BROKEN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PluginError):
            registry.method("bad")
        assert registry.status("good") is Status.READY


def test_a_blocked_method_is_never_imported() -> None:
    registry = Registry([origin("m", AssertionError("imported"))], blocked=["m"])
    with pytest.raises(PluginError, match="blocked"):
        registry.method("m")
    assert registry.status("m") is Status.BLOCKED


def test_two_distributions_are_a_conflict_when_the_name_is_used() -> None:
    first, second = origin("m", make_plugin(), "one"), origin("m", make_plugin(), "two")
    registry = Registry([first, second, origin("other", make_plugin())])
    assert registry.method("other").name == "other"
    assert registry.status("m") is Status.CONFLICT
    with pytest.raises(MethodConflictError, match="prefer=") as caught:
        registry.method("m")
    assert caught.value.distributions == ("one", "two")


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_only_a_preference_settles_a_conflict(order: tuple[str, str]) -> None:
    origins = [origin("m", make_plugin(), name) for name in order]
    assert Registry(origins, prefer={"m": "two"}).method("m").origin.distribution == "two"
    with pytest.raises(MethodConflictError):
        Registry(origins, prefer={"m": "three"}).method("m")


def test_the_environment_blocks_and_prefers() -> None:
    registry = Registry.discover(environ={"QLOAD_DISABLE": f"x, {UNQUANTIZED}", "QLOAD_PREFER": "m=two"})
    assert registry.status(UNQUANTIZED) is Status.BLOCKED
    assert registry._prefer == {"m": "two"}


@pytest.mark.parametrize(
    ("capabilities", "hooks", "fault"),
    [
        (Capabilities(embedding=True), {}, "lacks qload_embedding"),
        (Capabilities(), {"qload_embedding": lambda layer, ids: None}, "has qload_embedding"),
    ],
)
def test_capabilities_and_hooks_must_agree(
    capabilities: Capabilities, hooks: dict[str, Callable[..., Any]], fault: str
) -> None:
    info = MethodInfo("m", None, capabilities)
    method = Registry([origin("m", make_plugin(qload_method_info=lambda: info, **hooks))]).method("m")
    with pytest.raises(PluginError, match=fault):
        _ = method.runtime


@pytest.fixture
def runtime_module() -> Iterator[types.ModuleType]:
    module = types.ModuleType("some_runtime")
    sys.modules["some_runtime"] = module
    yield module
    del sys.modules["some_runtime"]


def test_the_runtime_module_is_imported_when_it_is_needed(runtime_module: types.ModuleType) -> None:
    info = MethodInfo("m", None, Capabilities(), runtime="some_runtime")
    plugin = make_plugin(qload_method_info=lambda: info, qload_dequantize=None)
    method = Registry([origin("m", plugin)]).method("m")
    with pytest.raises(PluginError, match="lacks qload_dequantize"):
        _ = method.runtime
    runtime_module.qload_dequantize = lambda layer: layer  # type: ignore[attr-defined]
    assert method.runtime["qload_dequantize"]("x") == "x"


def test_hooks_may_leave_out_arguments() -> None:
    method = Registry([origin("m", make_plugin())]).method("m")
    assert method.declaration["qload_create_weights"]("scheme", "geometry") == ()
    assert method.declaration["qload_create_weights"](scheme="scheme", geometry="geometry") == ()


def test_a_hook_that_takes_everything_is_called_as_it_is() -> None:
    plugin = make_plugin()
    method = Registry([origin("m", plugin)]).method("m")
    assert method.declaration["qload_scheme_for"] is plugin.qload_scheme_for


def test_plugins_answer_in_turn_and_broken_ones_are_set_aside() -> None:
    opener = types.SimpleNamespace(qload_open_checkpoint=lambda path: f"opened {path}")
    registry = Registry(plugins=[origin("broken", ImportError("gone")), origin("opener", opener)])
    with pytest.warns(PluginWarning, match="gone"):
        assert registry.call_plugins("qload_open_checkpoint", path="p") == "opened p"
    assert Registry().call_plugins("qload_open_checkpoint", path="p") is None


def test_the_installed_methods_are_sound(registry: Registry) -> None:
    assert [registry.status(name) for name in registry.names] == [Status.READY] * len(registry.names)
    for method in registry.methods():
        assert "qload_dequantize" in method.runtime
