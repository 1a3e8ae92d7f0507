"""A plugin that misbehaves is one error, with its name and whom to tell; and it hurts no other."""

import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, model_validator
from samples import DEMO
from strangers import make_rows, origin, registry_with, write_rows

import qload
from qload import Registry
from qload.checkpoint import Checkpoint, Folder, open_folder
from qload.declare import ParameterKind, ParameterSpec
from qload.errors import CheckpointError, PluginError
from qload.examination import open_checkpoint
from qload.findings import Finding
from qload.geometry import single
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo
from qload.layout import Layout, in_, out
from qload.quantization import Quantization
from qload.registry import PluginWarning, Status
from qload.resolution import resolve

REMEDY = "report it to dist 1.0 (rows_module), or do without: QLOAD_DISABLE=rows"


def fail(error: BaseException) -> Callable[[], Any]:
    def hook() -> Any:
        raise error

    return hook


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder)
    return folder


def quantization(**hooks: Any) -> Quantization:
    checkpoint = Checkpoint(Path("none"), {"quantization_config": {"quant_method": "rows"}}, {})
    return resolve(checkpoint, registry_with(make_rows(**hooks)))


def use(quantization: Quantization) -> object:
    treatment = quantization.treat(ModuleInfo(("layer",)))
    return quantization.declare(treatment, single(8, 8))


def test_the_method_itself_loads(rows: Path) -> None:
    model = qload.load(rows, registry=registry_with(make_rows()))
    assert qload.report(model).layers == {"rows by row": 15, "unquantized": 1}


def spec(**changes: Any) -> list[ParameterSpec]:
    """A sound declaration, less one thing."""
    layout = Layout((out(), in_()))
    return [replace(ParameterSpec("a", ParameterKind.PACKED, layout, ("I8",), "a"), **changes)]


class Unshown:
    """A scheme that can be hashed, and not shown."""

    def __str__(self) -> str:
        raise ValueError("no words")


# What a declaration hook does, and what is said of it.
DECLARATIONS: list[tuple[str, Callable[[], Any], str]] = [
    ("qload_scheme_for", fail(KeyError("x")), "raises KeyError: 'x'"),
    ("qload_scheme_for", fail(SystemExit(3)), "raises SystemExit: 3"),
    ("qload_scheme_for", lambda: {"bits": 8}, "returns dict, which is no frozen value"),
    ("qload_scheme_for", lambda: Unshown(), "returns Unshown, which is no frozen value"),
    ("qload_create_weights", fail(TypeError("no")), "raises TypeError: no"),
    ("qload_create_weights", lambda: None, "returns NoneType, not a sequence of ParameterSpec"),
    ("qload_create_weights", lambda: "abc", "returns str, not a sequence of ParameterSpec"),
    ("qload_create_weights", lambda: ["abc"], "returns str among what should be ParameterSpec"),
    ("qload_create_weights", lambda: (1 / 0 for _ in "a"), "raises ZeroDivisionError"),
    ("qload_create_weights", lambda: spec() * 2, "names a tensor twice: a"),
    ("qload_create_weights", lambda: spec(name="a b"), "a tensor named 'a b', which no attribute can be"),
    ("qload_create_weights", lambda: spec(dtypes="I8"), "a with the dtypes 'I8', not with a tuple of known codes"),
    ("qload_create_weights", lambda: spec(dtypes=("INT8",)), "a with the dtypes"),
    ("qload_create_weights", lambda: spec(dtypes=()), "a with the dtypes ()"),
    ("qload_create_weights", lambda: spec(name=8), "a tensor named 8, which no attribute can be"),
    ("qload_create_weights", lambda: spec(kind="weight"), "a with the kind 'weight', not a ParameterKind"),
    ("qload_create_weights", lambda: spec(layout=(out(),)), "a with the layout"),
    ("qload_create_weights", lambda: spec(layout=Layout((8,))), "a with the axis 8"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("hook", "does", "said"), DECLARATIONS)
def test_a_declaration_hook_that_misbehaves(hook: str, does: Callable[[], Any], said: str, rows: Path) -> None:
    made = quantization(**{hook: does})
    with pytest.raises(PluginError) as caught:
        use(made)
    (fault,) = caught.value.faults
    assert fault.startswith(hook)
    assert said in fault
    assert str(caught.value).endswith(REMEDY)
    registry = registry_with(make_rows(**{hook: does}))
    with pytest.raises(PluginError):
        qload.load(rows, registry=registry)
    (finding,) = qload.validate(rows, registry=registry).errors
    assert finding.code == "QL104"
    assert "QLOAD_DISABLE=rows" in str(finding)


def test_a_refusal_is_no_fault_of_the_plugin(rows: Path) -> None:
    registry = registry_with(make_rows(qload_scheme_for=fail(ValueError("bits 5\nare none"))))
    with pytest.raises(CheckpointError) as caught:
        qload.load(rows, registry=registry)
    assert {finding.code for finding in caught.value.findings} == {"QL104"}
    assert {finding.code for finding in qload.validate(rows, registry=registry).errors} == {"QL104"}
    assert "bits 5 are none" in str(caught.value)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (fail(IndexError("3")), "qload_check raises IndexError: 3"),
        (lambda: None, "qload_check returns NoneType, not a sequence of Finding"),
        (lambda: ["wrong"], "qload_check returns str among what should be Finding"),
        (lambda: (1 / 0 for _ in "a"), "qload_check raises ZeroDivisionError"),
    ],
)
def test_a_check_that_misbehaves(check: Callable[[], Any], said: str, rows: Path) -> None:
    registry = registry_with(make_rows(qload_check=check))
    with pytest.raises(PluginError, match=said):
        qload.load(rows, registry=registry)
    (finding,) = qload.validate(rows, registry=registry).errors
    assert said in str(finding)


CLAIMS: list[tuple[Callable[[], Any], str]] = [
    (fail(KeyError("x")), "qload_claim raises KeyError: 'x'"),
    (lambda: True, "qload_claim returns bool, not a Claim or None"),
    (lambda: Claim("very"), "a Claim with the specificity 'very', not a number"),  # type: ignore[arg-type]
    (lambda: Claim(True), "a Claim with the specificity True, not a number"),
    (lambda: Claim(100, config=[1]), r"a Claim with the config \[1\]"),  # type: ignore[arg-type]
    (lambda: Claim(100, alias=3), "a Claim with the alias 3"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("claim", "said"), CLAIMS)
def test_a_claim_that_misbehaves_is_passed_over(claim: Callable[[], Any], said: str) -> None:
    registry = registry_with(make_rows(qload_claim=claim))
    with pytest.warns(PluginWarning, match=f"passed over: .*{said}.*QLOAD_DISABLE=rows"):
        assert resolve(Checkpoint(Path("none"), {}, {}), registry).method.name == "unquantized"


OPENERS: list[tuple[Any, str]] = [
    (ImportError("gone"), "ImportError: gone"),
    (types.SimpleNamespace(qload_open_checkpoint=fail(KeyError("x"))), "qload_open_checkpoint raises KeyError: 'x'"),
    (types.SimpleNamespace(qload_open_checkpoint=lambda: "opened"), "returns str, not a Checkpoint or None"),
    (types.SimpleNamespace(qload_open_checkpoints=print), "qload_open_checkpoints is not a hook"),
]


@pytest.mark.parametrize(("plugin", "said"), OPENERS)
def test_an_opener_that_misbehaves_is_passed_over(plugin: Any, said: str) -> None:
    """The next one is asked, and without one the folder is read as ever."""
    other = types.SimpleNamespace(qload_open_checkpoint=lambda storage: Checkpoint(Path(storage.place), {"a": 1}, {}))
    registry = Registry(plugins=[origin("broken", plugin), origin("works", other)])
    with pytest.warns(PluginWarning, match=said):
        assert open_checkpoint(DEMO, registry).config == {"a": 1}
    with pytest.warns(PluginWarning, match="QLOAD_DISABLE=broken"):
        assert open_checkpoint(DEMO, Registry(plugins=[origin("broken", plugin)])) == open_folder(Folder(DEMO))


def test_an_opener_may_say_what_is_wrong_with_a_checkpoint() -> None:
    error = CheckpointError("file", [Finding("X1", "truncated")])
    opener = types.SimpleNamespace(qload_open_checkpoint=fail(error))
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(DEMO, Registry(plugins=[origin("opener", opener)]))


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (MethodInfo("m", dict, Capabilities()), "config, a pydantic model's class or None"),  # type: ignore[arg-type]
        (MethodInfo("m", {}, Capabilities()), "config, a pydantic model's class or None"),  # type: ignore[arg-type]
        (MethodInfo("m", None, {"linear": True}), "capabilities, a Capabilities"),  # type: ignore[arg-type]
        (MethodInfo("m", None, Capabilities(), sys), "runtime, a module's name or None"),  # type: ignore[arg-type]
        (MethodInfo(None, None, Capabilities()), "summary, a text"),  # type: ignore[arg-type]
    ],
)
def test_an_info_that_is_none(info: MethodInfo, said: str) -> None:
    registry = registry_with(make_rows(qload_method_info=lambda: info))
    with pytest.warns(PluginWarning, match=f"its MethodInfo has no proper {said}"):
        assert registry.status("rows") is Status.BROKEN
    assert registry.status("gptq") is Status.READY


class BrokenConfig(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def read(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {"bits": given["bits"]}


def test_a_config_model_that_fails() -> None:
    info = MethodInfo("m", BrokenConfig, Capabilities(embedding=True))
    with pytest.raises(PluginError, match="its config model raises KeyError: 'bits'"):
        quantization(qload_method_info=lambda: info)


# What a torch hook does, and what is said of it.
RUNTIMES: list[tuple[str, Callable[..., Any], str]] = [
    ("qload_process_weights_after_loading", lambda layer: 1 / 0, "raises ZeroDivisionError: division by zero"),
    ("qload_dequantize", lambda layer: layer.nothing, "raises AttributeError: the method declares no tensor 'nothing'"),
    ("qload_dequantize", lambda layer: None, "returns NoneType, not a tensor"),
    ("qload_dequantize", lambda layer: layer.row_scale, "returns the shape ["),
    ("qload_dequantize", lambda layer: layer.values, "returns torch.int8, not floats"),
    ("qload_dequantize", lambda layer: layer.values.to(torch.float8_e4m3fn), "returns torch.float8_e4m3fn, not floats"),
    ("qload_apply", lambda layer, x: x[:, :1], "returns the shape ["),
    ("qload_apply", lambda layer, x: x.new_zeros(1, layer.out_features).double(), "returns torch.float64, not"),
    ("qload_apply", lambda layer, x: x @ layer.values, "raises RuntimeError"),
    ("qload_embedding", lambda layer, ids: layer.row_scale[ids], "returns the shape [1], not [1, 256]"),
]


@pytest.mark.parametrize(("hook", "does", "said"), RUNTIMES)
def test_a_torch_hook_that_misbehaves_stops_the_load(
    hook: str, does: Callable[..., Any], said: str, rows: Path
) -> None:
    """Before the model is handed out, and not at its first token."""
    with pytest.raises(PluginError) as caught:
        qload.load(rows, registry=registry_with(make_rows(**{hook: does})))
    assert f"the plugin of 'rows' is not usable: {hook} {said}" in str(caught.value)
    assert str(caught.value).startswith("model.")
    assert str(caught.value).endswith(REMEDY)


def test_hot_hooks_are_proven_once_for_each_scheme_and_kind(rows: Path) -> None:
    calls: list[str] = []

    def dequantize(layer: Any) -> torch.Tensor:
        calls.append("dequantize")
        weight: torch.Tensor = layer.values * layer.row_scale[:, None]
        return weight

    model = qload.load(rows, registry=registry_with(make_rows(qload_dequantize=dequantize)))
    assert calls == ["dequantize"]
    assert model.model.layers[0].mlp.down_proj.hooks.dequantize is dequantize


def test_each_scheme_proves_itself(rows: Path) -> None:
    def dequantize(layer: Any) -> torch.Tensor:
        weight: torch.Tensor = layer.values * layer.row_scale[:, None]
        return weight if layer.scheme == "first" else weight.T.contiguous()[:1]

    hooks = {
        "qload_scheme_for": lambda module: (
            None if module.name == "lm_head" else "second" if "down_proj" in module.name else "first"
        ),
        "qload_dequantize": dequantize,
    }
    with pytest.raises(PluginError, match=r"down_proj: .*qload_dequantize returns the shape"):
        qload.load(rows, registry=registry_with(make_rows(**hooks)))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError("full")])
def test_running_out_of_memory_is_nobodys_fault(error: Exception, rows: Path) -> None:
    with pytest.raises(type(error)):
        qload.load(rows, registry=registry_with(make_rows(qload_dequantize=fail(error))))


def test_a_broken_stranger_hurts_no_other_method() -> None:
    broken = make_rows(qload_claim=fail(KeyError("x")), qload_scheme_for=fail(KeyError("y")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert qload.validate(DEMO, registry=registry_with(broken)).ok
