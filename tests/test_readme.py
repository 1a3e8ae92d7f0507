"""What README shows is true: its plugin keeps the contract, and its commands exist."""

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from edits import copy_checkpoint, edit_tensors
from samples import DEMO, make_quantization
from strangers import registry_with, write_rows
from torch import Tensor
from transformers import AutoModelForCausalLM

import qload
from qload import Registry
from qload.cli import cli
from qload.registry import UNQUANTIZED, Origin
from qload.testing import check_method
from qload.torch import Layer, Site

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n# (rowint8/\w+\.py).*?\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def shown() -> Iterator[dict[str, types.ModuleType]]:
    """The modules that README shows, as if they were installed."""
    modules = {}
    for file, code in BLOCKS:
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        modules[name] = sys.modules[name] = types.ModuleType(name)
        exec(compile(code, file, "exec"), modules[name].__dict__)
    yield modules
    for name in modules:
        del sys.modules[name]


def test_the_plugin_in_one_screen_keeps_the_contract(shown: dict[str, types.ModuleType], registry: Registry) -> None:
    assert set(shown) == {"rowint8", "rowint8.runtime"}
    origin = Origin("rowint8", "rowint8", "readme", "1", lambda: shown["rowint8"])
    check_method(make_quantization({"quant_method": "rowint8"}, Registry([*registry.origins(UNQUANTIZED), origin])))


def test_the_first_lines_run_and_say_what_they_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(import qload\nfrom transformers.*?)```", TEXT, re.DOTALL)
    printed: list[object] = []
    exec(compile(code, "README.md", "exec"), {"print": printed.append})
    layers, paths = re.findall(r"(?:layers|paths)\)  # (\{.*?\})", code)
    assert str(printed[0]) == layers
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert str(printed[1]) == paths


def test_the_plugin_in_one_screen_loads_a_real_model(
    shown: dict[str, types.ModuleType], tmp_path: Path, registry: Registry
) -> None:
    """A model has modules that a plugin of one screen does not think of: norms, and attentions."""
    expected = write_rows(tmp_path, "rowint8")
    registry = registry_with(shown["rowint8"], "rowint8")
    assert qload.validate(tmp_path, registry=registry).findings == ()
    model = qload.load(tmp_path, registry=registry)
    assert qload.report(model).layers == {"rowint8 by row": 15, "unquantized": 1}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    assert len(layers) == 16
    for name, layer in layers.items():
        assert torch.equal(qload.dequantize(layer), expected[f"{name}.weight"])
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        logits = model(ids).logits
        dense = AutoModelForCausalLM.from_config(model.config).eval()
        dense.load_state_dict(expected)
        assert torch.allclose(logits, dense(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_model_that_the_docs_show_loads() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    (code,) = re.findall(r"```python\n(import torch\nfrom torch import nn.*?)```", text, re.DOTALL)
    shown: dict[str, object] = {"path": DEMO}
    exec(compile(code, "docs/models.md", "exec"), shown)
    weight = shown["mlp"].down_proj.dequantize()  # type: ignore[attr-defined]
    assert tuple(weight.shape) == (256, 512)


def test_the_vocabularies_that_the_docs_show_are_looked_up() -> None:
    _, _, text = (ROOT / "docs" / "models.md").read_text().partition("### Vocabularies")
    shown: dict[str, Any] = {"path": DEMO, "quantization": qload.read_quantization(DEMO)}
    shown |= {"qload": qload, "torch": torch, "Site": Site}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, "docs/models.md", "exec"), shown)
    assert torch.equal(shown["table"](torch.tensor([1024])), torch.ones(1, 256))
    assert shown["rows"].rows == 2


def test_the_broken_checkpoint_is_described_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for layer in range(2):
            del tensors[f"model.layers.{layer}.mlp.down_proj.weight_scale"]
        name = "model.layers.0.self_attn.q_proj.weight_scale"
        tensors[name] = tensors[name][:, :1]

    edit_tensors(copy_checkpoint(DEMO, tmp_path / "broken"), change)
    monkeypatch.chdir(tmp_path)
    (expected,) = re.findall(r"\$ qload validate broken\n(.*?)```", TEXT, re.DOTALL)
    assert CliRunner().invoke(cli, ["validate", "broken"]).output.split() == expected.split()


def test_the_plan_of_ranks_is_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ((arguments, expected),) = re.findall(r"\$ qload (plan .*?)\n(.*?)```", TEXT, re.DOTALL)
    found = [line.split() for line in CliRunner().invoke(cli, arguments.split()).output.splitlines()]
    unwrapped = re.sub(r"numbers of\n", "numbers of ", expected)
    shown = [line.split() for line in unwrapped.splitlines() if line != "..."]
    assert [line for line in shown if line not in found] == []
    assert len(shown) > 10


def test_the_commands_are_there() -> None:
    named = set(re.findall(r"^qload (\w+)", TEXT, re.MULTILINE))
    assert named == set(cli.list_commands(cli.make_context("qload", [], resilient_parsing=True)))


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([\w./-]+)\)", TEXT))))
def test_what_is_linked_is_there(link: str) -> None:
    assert (ROOT / link).exists()


def test_make_knows_the_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
