"""A plugin's kernel comes before the built-in ones; what is wrong with it is said with the plugin's name."""

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import make_quantization
from strangers import make_rows, origin, registry_with, write_rows
from torch import Tensor
from torch.nn import functional as F

import qload
from qload.calls import PluginWarning
from qload.errors import PluginError, QloadError
from qload.hookspecs import LayerPiece
from qload.registry import Registry
from qload.torch import Layer, ReplicatedLinear, Site
from qload.torch.activations import Agree
from qload.torch.kernels import Blank, Case, Inputs, IntegerWeight, Kernel, Weight


class Toy(Kernel):
    """Rows of int8, multiplied before they are scaled."""

    label = "toy"

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        return isinstance(weight, IntegerWeight)

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        shape = (weight.rows, weight.columns)
        return {"values": Blank(shape, torch.int8), "scale": Blank((weight.rows, 1), weight.scale.dtype)}

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        into["values"].copy_(weight.values)
        into["scale"].copy_(weight.scale)

    def restore(self, held: Mapping[str, Tensor]) -> IntegerWeight:
        return IntegerWeight(held["values"], 8, self.columns, held["scale"], 0, self.columns)

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        return (F.linear(x.float(), held["values"].float()) * held["scale"].flatten()).to(x.dtype)


class Reluctant(Toy):
    label = "reluctant"

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        return "it would rather not"


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("toys")
    module.Toy, module.Reluctant, module.number = Toy, Reluctant, 3
    monkeypatch.setitem(sys.modules, "toys", module)


def give(layer: LayerPiece) -> Weight:
    return IntegerWeight(layer.values, 8, layer.in_features, layer.row_scale[:, None], 0, layer.in_features)


def registry_of(*names: str) -> Registry:
    """One whose method gives its weights to kernels, and a plugin beside it that names some."""
    beside = types.SimpleNamespace(qload_kernels=lambda: names)
    return registry_with(make_rows(qload_weight=give), plugins=[origin("beside", beside, "toybox")])


def test_a_plugins_kernel_computes_what_the_dense_weight_does(tmp_path: Path) -> None:
    write_rows(tmp_path)
    registry, ids = registry_of("toys:Toy"), torch.tensor([[1, 2, 3]])
    fast, plain = (qload.load(tmp_path, registry=registry, kernels=kernels) for kernels in (None, ()))
    assert qload.report(fast).paths["toy"] > 0
    with torch.no_grad():
        assert torch.allclose(fast(ids).logits, plain(ids).logits, rtol=1e-2, atol=1e-3)
    for name, layer in plain.named_modules():
        if isinstance(layer, Layer):
            packed = fast.get_submodule(name)
            assert isinstance(packed, Layer)
            assert torch.equal(qload.dequantize(packed), qload.dequantize(layer)), name


def test_a_load_may_name_it_or_do_without(tmp_path: Path) -> None:
    write_rows(tmp_path)
    registry = registry_of("toys:Reluctant", "toys:Toy")
    assert "toy" in qload.report(qload.load(tmp_path, registry=registry)).paths
    alone = qload.report(qload.load(tmp_path, registry=registry, kernels=["reluctant"]))
    assert "toy" not in alone.paths
    assert "reluctant: it would rather not" in alone.reasons
    with pytest.raises(QloadError, match="there is no kernel of that name"):
        qload.load(tmp_path, registry=registry, kernels=["tin"])


def test_tensors_in_memory_find_it_too() -> None:
    registry = registry_of("toys:Toy")
    quantization = make_quantization({"quant_method": "rows"}, registry)
    tensors = {"m.values": torch.ones(8, 4, dtype=torch.int8), "m.row_scale": torch.ones(8)}
    layer = ReplicatedLinear(4, 8, Site(quantization, "m"))
    assert qload.load_tensors(layer, tensors, quantization, registry=registry).paths == {"toy": 1}
    assert "toy" not in qload.load_tensors(layer, tensors, quantization).paths


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("toys:Tin", "Tin"),
        ("tins:Toy", "tins"),
        ("toys:number", "toys:number, which is no qload.torch.kernels.Kernel"),
    ],
)
def test_what_is_no_kernel_is_the_plugins_fault(tmp_path: Path, target: str, fault: str) -> None:
    write_rows(tmp_path)
    with pytest.raises(PluginError, match=fault) as caught:
        qload.load(tmp_path, registry=registry_of(target))
    assert "toybox" in str(caught.value)


def test_a_name_of_no_class_is_passed_over(tmp_path: Path) -> None:
    write_rows(tmp_path)
    with pytest.warns(PluginWarning, match="names the kernel 'toys', not as package.module:Class"):
        model = qload.load(tmp_path, registry=registry_of("toys"))
    assert "toy" not in qload.report(model).paths
