"""The registry: checked before registration, blocked, conflicting, quarantined; never by load order."""

import py_compile
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from strangers import make_plugin, origin

from qload.checkpoint import Checkpoint, Folder
from qload.entries import read_origins
from qload.errors import MethodConflictError, PluginError, UnknownMethodError
from qload.hookspecs import HOOKSPEC_VERSION, Capabilities, MethodInfo
from qload.registry import UNQUANTIZED, Origin, PluginWarning, Registry, Status

OPEN = "qload_open_checkpoint"


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


@pytest.mark.parametrize("version", [HOOKSPEC_VERSION + 1, HOOKSPEC_VERSION - 1])
def test_another_version_of_the_hooks_is_refused(version: int) -> None:
    info = MethodInfo("other", None, Capabilities(), hookspec_version=version)
    (fault,) = faults_of(make_plugin(qload_method_info=lambda: info))
    assert fault == f"it is made for version {version} of the hooks, and this is {HOOKSPEC_VERSION}"


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
    with pytest.raises(MethodConflictError):
        Registry([*origins, *origins], prefer={"m": "two"}).method("m")


def test_the_environment_blocks_and_prefers() -> None:
    registry = Registry.discover(environ={"QLOAD_DISABLE": f"x, {UNQUANTIZED}", "QLOAD_PREFER": " m = two,n=one"})
    assert registry.status(UNQUANTIZED) is Status.BLOCKED
    assert registry._prefer == {"m": "two", "n": "one"}


def test_what_the_code_prefers_comes_before_the_environment() -> None:
    registry = Registry.discover(prefer={"m": "one"}, environ={"QLOAD_PREFER": "m=two"})
    assert registry._prefer == {"m": "one"}


@pytest.mark.parametrize(
    ("capabilities", "hooks", "fault"),
    [
        (Capabilities(embedding=True), {}, "lacks qload_embedding"),
        (Capabilities(), {"qload_embedding": lambda layer, ids: None}, "has qload_embedding"),
        (Capabilities(kv_cache=True), {}, "lacks qload_cache"),
        (Capabilities(kv_cache="loaded"), {"qload_cache": lambda layer, keys, values: None}, "has qload_cache"),
    ],
)
def test_capabilities_and_hooks_must_agree(
    capabilities: Capabilities, hooks: dict[str, Callable[..., Any]], fault: str
) -> None:
    info = MethodInfo("m", None, capabilities)
    registry = Registry([origin("m", make_plugin(qload_method_info=lambda: info, **hooks))])
    with pytest.warns(PluginWarning), pytest.raises(PluginError, match=fault):
        registry.method("m")


@pytest.fixture
def runtime_module() -> Iterator[types.ModuleType]:
    module = types.ModuleType("some_runtime")
    sys.modules["some_runtime"] = module
    yield module
    del sys.modules["some_runtime"]


def test_the_runtime_module_is_imported_when_it_is_needed(runtime_module: types.ModuleType) -> None:
    info = MethodInfo("m", None, Capabilities(), runtime="some_runtime")
    plugin = make_plugin(qload_method_info=lambda: info, qload_dequantize=None)
    runtime_module.qload_dequantize = lambda layer: layer  # type: ignore[attr-defined]
    method = Registry([origin("m", plugin)]).method("m")
    runtime_module.qload_dequantise = lambda layer: layer  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="qload_dequantise is not a hook"):
        _ = method.runtime
    del runtime_module.qload_dequantise
    assert method.runtime["qload_dequantize"]("x") == "x"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import torch_that_is_not_there\ndef dequantize(layer): ...", "lacks qload_dequantize, which is required"),
        ("def qload_dequantize(layer): ...\ndef qload_embedding(layer, ids): ...", "has qload_embedding"),
        ("def qload_dequantize(layer) ...", "raises SyntaxError"),
        (None, "no module named 'read_runtime'"),
        ("def __getattr__(name): ...", None),
        ("from somewhere import dequantize as qload_dequantize", None),
        ("from somewhere import qload_dequantize as dequantize", "read_runtime: it lacks qload_dequantize"),
        ("from somewhere import qload_dequantize", None),
        ("from somewhere import *", None),
        ("if 1:\n    qload_dequantize = print", None),
        ("print(qload_dequantize)", "read_runtime: it lacks qload_dequantize"),
        ("def make():\n    qload_dequantize = print", "read_runtime: it lacks qload_dequantize"),
    ],
)
def test_what_the_runtime_lacks_is_known_without_importing_it(
    source: str | None, fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`qload methods` must not call a method ready that no layer can be built of, and imports no torch to know."""
    monkeypatch.syspath_prepend(tmp_path)
    if source is not None:
        (tmp_path / "read_runtime.py").write_text(source)
    info = MethodInfo("m", None, Capabilities(), runtime="read_runtime")
    registry = Registry([origin("m", make_plugin(qload_method_info=lambda: info, qload_dequantize=None))])
    if fault is None:
        assert registry.status("m") is Status.READY
    else:
        with pytest.warns(PluginWarning, match=fault):
            assert registry.status("m") is Status.BROKEN
    assert "read_runtime" not in sys.modules


def test_a_runtime_without_its_source_is_taken_at_its_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "compiled.py").write_text("def qload_dequantize(layer): return 'dense'")
    py_compile.compile(str(tmp_path / "compiled.py"), str(tmp_path / "compiled_runtime.pyc"))
    info = MethodInfo("m", None, Capabilities(), runtime="compiled_runtime")
    registry = Registry([origin("m", make_plugin(qload_method_info=lambda: info, qload_dequantize=None))])
    assert registry.status("m") is Status.READY
    assert registry.method("m").runtime["qload_dequantize"]("layer") == "dense"
    del sys.modules["compiled_runtime"]


def test_a_runtime_that_lacks_a_hook_is_named_and_the_hook_once(runtime_module: types.ModuleType) -> None:
    info = MethodInfo("m", None, Capabilities(), runtime="some_runtime")
    runtime_module.qload_dequantize = lambda layer: layer  # type: ignore[attr-defined]
    method = Registry([origin("m", make_plugin(qload_method_info=lambda: info, qload_dequantize=None))]).method("m")
    del runtime_module.qload_dequantize
    with pytest.raises(PluginError) as caught:
        _ = method.runtime
    assert caught.value.faults == ("it lacks qload_dequantize, which is required",)
    assert caught.value.where == "some_runtime"


def test_hooks_may_leave_out_arguments() -> None:
    runtime = Registry([origin("m", make_plugin(qload_apply=lambda x: x))]).method("m").runtime
    assert runtime["qload_apply"]("layer", "x", "bias") == "x"
    assert runtime["qload_apply"](layer="layer", x="x", bias="bias") == "x"


def test_arguments_are_passed_by_name_in_whatever_order_a_hook_takes_them() -> None:
    plugin = make_plugin(qload_apply=lambda bias, x, layer: (layer, x, bias))
    runtime = Registry([origin("m", plugin)]).method("m").runtime
    assert runtime["qload_apply"]("layer", "x", "bias") == ("layer", "x", "bias")


def test_a_hook_that_takes_everything_is_called_as_it_is() -> None:
    plugin = make_plugin()
    method = Registry([origin("m", plugin)]).method("m")
    assert method.runtime["qload_dequantize"] is plugin.qload_dequantize


def test_a_package_may_be_called_like_a_hook() -> None:
    plugin = make_plugin(qload_gptq=types.ModuleType("qload_gptq"))
    assert Registry([origin("m", plugin)]).status("m") is Status.READY


def test_one_module_may_stand_behind_two_entry_points() -> None:
    plugin = make_plugin()
    registry = Registry([origin("a", plugin), origin("b", plugin)], plugins=[origin("p", plugin)])
    assert [registry.method(name).name for name in ("a", "b")] == ["a", "b"]
    assert registry.method("b").runtime["qload_dequantize"] is plugin.qload_dequantize
    opener = types.SimpleNamespace(qload_open_checkpoint=lambda: None)
    assert Registry(plugins=[origin("p", opener), origin("q", opener)]).call_plugins(OPEN, Path()) is None


@pytest.mark.parametrize("places", [(("a", "z"), ("b", "y")), (("p", "one"), ("p", "two"))])
@pytest.mark.parametrize("step", [1, -1])
def test_plugins_are_asked_in_the_order_of_their_names(places: tuple[tuple[str, str], ...], step: int) -> None:
    """And of their distributions' names, but never in that of installing."""

    def opener(name: str, distribution: str) -> Origin:
        checkpoint = Checkpoint(Path(name, distribution), {}, {})
        return origin(name, types.SimpleNamespace(qload_open_checkpoint=lambda: checkpoint), distribution)

    registry = Registry(plugins=[opener(*place) for place in places[::step]])
    assert registry.call_plugins(OPEN, Path()).path == Path(*places[0])


def test_a_plugin_is_imported_once_however_often_it_is_asked() -> None:
    imported: list[str] = []

    def load() -> object:
        imported.append("p")
        return types.SimpleNamespace(qload_open_checkpoint=lambda: None)

    registry = Registry(plugins=[replace(origin("p", None), load=load)])
    assert [registry.call_plugins(OPEN, Path()) for _ in range(2)] == [None, None]
    assert imported == ["p"]


def test_methods_are_listed_by_name_and_not_in_the_order_of_installing() -> None:
    assert Registry([origin(name, make_plugin()) for name in "cab"]).names == ("a", "b", "c")


def test_an_entry_point_that_no_distribution_owns_is_called_so() -> None:
    (found,) = read_origins([EntryPoint("m", "m_module", "qload.methods")])
    assert (found.method, found.target, found.distribution, found.version) == ("m", "m_module", "unknown", "")
    assert str(found.blame("it fails")).endswith("report it to unknown (m_module), or do without: QLOAD_DISABLE=m")


@pytest.mark.parametrize("other", [origin("m", None, "two"), origin("n", None, "one")])
def test_methods_are_the_same_where_they_come_from_the_same_place(other: Origin) -> None:
    one, again = (Registry([origin("m", make_plugin(), "one")]).method("m") for _ in range(2))
    assert one == again
    assert hash(one) == hash(again)
    different = replace(other, load=make_plugin)
    assert one != Registry([different]).method(different.method)


def test_a_blocked_plugin_is_never_imported() -> None:
    registry = Registry(plugins=[origin("p", AssertionError("imported"))], blocked=["p"])
    assert registry.call_plugins(OPEN, Path()) is None


def test_what_is_installed_is_found_in_both_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [EntryPoint("m", "m_module", "qload.methods"), EntryPoint("p", "opener", "qload.plugins")]
    monkeypatch.setattr("qload.registry.entry_points", lambda: EntryPoints(installed))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "opener.py").write_text(
        "from qload.checkpoint import Checkpoint\n"
        "from pathlib import Path\n"
        "def qload_open_checkpoint(storage): return Checkpoint(Path(storage.place), {'opened': 1}, {})\n"
    )
    registry = Registry.discover(environ={})
    assert registry.names == ("m",)
    assert registry.call_plugins(OPEN, Folder(tmp_path), "").config == {"opened": 1}
    assert Registry.discover(environ={"QLOAD_DISABLE": "p"}).call_plugins(OPEN, Folder(tmp_path), "") is None
    del sys.modules["opener"]


def test_the_installed_methods_are_sound(registry: Registry) -> None:
    assert [registry.status(name) for name in registry.names] == [Status.READY] * len(registry.names)
    for method in registry.methods():
        assert "qload_dequantize" in method.runtime
