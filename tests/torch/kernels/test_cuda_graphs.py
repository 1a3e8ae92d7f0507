"""Nothing that a layer computes makes the host wait for the device; a graph of it gives what it gives."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpus import CUDA, needs_gpu
from samples import DEMO, supported
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import StaticCache

import qload
from qload.geometry import Kind
from qload.torch import Layer

WAITS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::lift_fresh",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::_unique2",
}
"""What asks the device for a value, or for a size, or brings it a tensor that was made of Python's numbers."""


class Witness(TorchDispatchMode):
    """Lists the operators that a host would wait for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in WAITS or str(func) == "aten.repeat_interleave.Tensor" or _is_masked(name, args):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def _is_masked(name: str, args: Any) -> bool:
    return name == "aten::index" and any(index is not None and index.dtype == torch.bool for index in args[1])


def compute(layer: Layer) -> Tensor:
    """What a layer makes of three tokens; of a stack, the first expert."""
    if layer.geometry.kind is Kind.EMBEDDING:
        found: Tensor = layer(torch.zeros(1, 3, dtype=torch.int64))
        return found
    x = torch.randn(3, layer.local.in_features, dtype=layer.dtype)
    return layer.compute(x, None if layer.local.experts is None else 0)


def list_layers(model: torch.nn.Module) -> Iterator[tuple[str, Layer]]:
    for name, layer in model.named_modules():
        if isinstance(layer, Layer) and layer.scheme is not None and layer.geometry.kind is not Kind.KV_CACHE:
            yield name, layer


@pytest.mark.parametrize("kernels", [(), None], ids=["dequantized", "kernels"])
@pytest.mark.parametrize("path", supported(), ids=lambda path: path.name)
def test_no_layer_waits(path: Path, kernels: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = qload.load(path, kernels=kernels)
    # What looks at values on a CPU alone does so nowhere while a graph is made.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = {}
    for name, layer in list_layers(model):
        with torch.no_grad(), Witness() as witness:
            compute(layer)
        if witness.found:
            found[name] = witness.found
    assert not found


def test_a_witness_sees_what_is_waited_for() -> None:
    with Witness() as witness:
        x = torch.tensor([1.0, 2.0])
        x[x > 1].sum().item()
    assert witness.found == {"aten::lift_fresh", "aten::index", "aten::_local_scalar_dense"}


def capture(compute: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of what is computed, once it has been computed outside of one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        made = compute()
    return graph, made


@needs_gpu
@pytest.mark.parametrize("kernels", [(), None], ids=["dequantized", "kernels"])
@pytest.mark.parametrize("path", supported(), ids=lambda path: path.name)
def test_a_layer_is_captured(path: Path, kernels: tuple[str, ...] | None) -> None:
    model = qload.load(path, kernels=kernels, device="cuda", dtype=torch.bfloat16)
    for name, layer in list_layers(model):
        if layer.geometry.kind is Kind.EMBEDDING:
            continue
        expert = None if layer.local.experts is None else 0
        x = torch.randn(1, layer.local.in_features, dtype=layer.dtype, device=CUDA)
        graph, made = capture(lambda layer=layer, x=x, expert=expert: layer.compute(x, expert))
        x.normal_()
        graph.replay()
        with torch.no_grad():
            assert torch.allclose(made, layer.compute(x, expert), rtol=1e-2, atol=1e-3), name


@needs_gpu
def test_a_decoding_step_is_captured() -> None:
    model = qload.load(DEMO, device="cuda", dtype=torch.bfloat16)
    cache = StaticCache(config=model.config, max_cache_len=32)
    ids, place = torch.tensor([[1, 2, 3]], device=CUDA), torch.arange(3, device=CUDA)
    with torch.no_grad():
        model(ids, past_key_values=cache, cache_position=place)
    token, place = ids[:, :1].clone(), torch.tensor([3], device=CUDA)
    graph, made = capture(lambda: model(token, past_key_values=cache, cache_position=place).logits)
    token.fill_(7)
    graph.replay()
    with torch.no_grad():
        expected = model(torch.tensor([[1, 2, 3, 7]], device=CUDA)).logits[:, -1:]
    assert torch.allclose(made, expected, rtol=5e-2, atol=5e-2)
