"""Layers that threads pack are those that the caller would have packed."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import DEMO, is_swept, read_reference, supported
from strangers import make_rows, registry_with, write_rows
from torch import Tensor

import qload
from qload.errors import PluginError
from qload.hookspecs import LayerPiece
from qload.torch import Layer, spares
from qload.torch.kernels import IntegerWeight, Weight
from qload.torch.loading import filling, packers
from qload.torch.memory import Arena


@pytest.fixture(autouse=True)
def cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    assert not [each for each in threading.enumerate() if each.name.startswith("qload")]
    torch.set_num_threads(before)


def tensors_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return dict((*model.named_parameters(), *model.named_buffers()))


@pytest.mark.parametrize("path", [*filter(is_swept, supported())], ids=lambda path: path.name)
def test_threads_pack_what_the_caller_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = qload.load(path, dtype=torch.bfloat16)
    monkeypatch.setattr(packers, "_MOST_THREADS", 1)
    alone = qload.load(path, dtype=torch.bfloat16)
    assert qload.report(found).paths == qload.report(alone).paths
    ours, theirs = tensors_of(found), tensors_of(alone)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(bits(ours[name]), bits(tensor)), name


@pytest.mark.parametrize("path", [*filter(is_swept, supported())], ids=lambda path: path.name)
def test_memory_that_other_layers_left_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = qload.load(path, dtype=torch.bfloat16)
    monkeypatch.setattr(spares, "_LEAST", 64)
    found = qload.load(path, dtype=torch.bfloat16)
    theirs = tensors_of(found)
    assert all(torch.equal(bits(theirs[name]), bits(tensor)) for name, tensor in tensors_of(expected).items())


def test_a_load_keeps_nothing_of_what_its_layers_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path)
    arenas = list[Arena]()

    class Watched(Arena):
        is_open = True

        def __init__(self, device: torch.device, spare_bytes: int) -> None:
            super().__init__(device, spare_bytes=spare_bytes)
            assert spare_bytes == filling.SPARE_BYTES
            arenas.append(self)

        def close(self) -> None:
            self.is_open = False
            super().close()

    monkeypatch.setattr(filling, "Arena", Watched)
    qload.load(tmp_path, registry=registry_with(make_rows(qload_weight=give)))
    assert [getattr(arena, "is_open", None) for arena in arenas] == [False]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def give(layer: LayerPiece) -> Weight:
    return IntegerWeight(layer.values, 8, layer.in_features, layer.row_scale[:, None], 0, layer.in_features)


def test_what_a_thread_raises_ends_the_load(tmp_path: Path) -> None:
    write_rows(tmp_path)
    threads = set[str]()

    def fail(layer: LayerPiece) -> Weight:
        threads.add(threading.current_thread().name)
        raise ZeroDivisionError(f"by nothing, in {layer.in_features} columns")

    with pytest.raises(PluginError, match="qload_weight raises ZeroDivisionError: by nothing"):
        qload.load(tmp_path, registry=registry_with(make_rows(qload_weight=fail)))
    assert all(name.startswith("qload-pack") for name in threads)


@pytest.mark.parametrize(("limit", "most"), [(0, 1), (1 << 30, 3)])
def test_only_so_much_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, most: int) -> None:
    write_rows(tmp_path)
    monkeypatch.setattr(packers, "PENDING_BYTES", limit)
    lock, reached = threading.Lock(), threading.Event()
    counts, now = [0], [0]

    def count(layer: LayerPiece) -> Weight:
        with lock:
            now[0] += 1
            counts.append(now[0])
        if now[0] == most:
            reached.set()
        # Others have the time to come, if they may.
        reached.wait(10)
        time.sleep(0.01)
        with lock:
            now[0] -= 1
        return give(layer)

    qload.load(tmp_path, registry=registry_with(make_rows(qload_weight=count)))
    assert max(counts) == most


def test_threads_that_begin_meanwhile_have_all_cores(tmp_path: Path) -> None:
    write_rows(tmp_path)
    own, others = list[int](), list[int]()

    def begin(layer: LayerPiece) -> Weight:
        own.append(torch.get_num_threads())
        other = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        other.start()
        other.join()
        return give(layer)

    qload.load(tmp_path, registry=registry_with(make_rows(qload_weight=begin)))
    assert set(own) == {1}
    # Others may set it at the moment.
    assert others[-1] == 3


def test_models_of_inference_are_packed_so() -> None:
    with torch.inference_mode():
        model = qload.load(DEMO)
        ids = read_reference(DEMO).input_ids
        expected = qload.load(DEMO, kernels=())(ids).logits
        assert model(ids).logits.shape == expected.shape
    layers: list[Any] = [each for each in model.modules() if isinstance(each, Layer) and each.packed is not None]
    assert layers
    assert all(each.is_inference() for layer in layers for each in layer.packed.buffers())
