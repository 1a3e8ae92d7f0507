"""Arenas: tensors of their own, whose memory goes back when they do."""

import copy
import gc
import io
import os
import subprocess
import sys
import threading
from math import prod

import pytest
import torch
from residence import is_mapped, on_linux, resident
from torch import Tensor

from qload.torch.dtypes import _TORCH
from qload.torch.memory import Arena

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", _TORCH.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (5, 7), (0, 4), (2, 3, 4)])
def test_a_tensor_is_zeros_of_its_own(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    arena = Arena(CPU)
    first, second = arena.take(shape, dtype), arena.take(shape, dtype)
    assert (first.shape, first.dtype, first.is_contiguous()) == (shape, dtype, True)
    assert first.untyped_storage().nbytes() == prod(shape) * dtype.itemsize
    assert first.storage_offset() == 0
    assert first.data_ptr() % 64 == 0
    if first.numel():
        first.reshape(-1).view(torch.uint8).fill_(1)
        assert first.data_ptr() != second.data_ptr()
    assert not second.reshape(-1).view(torch.uint8).any()


@on_linux
def test_what_is_freed_goes_back_page_by_page() -> None:
    arena, size = Arena(CPU), 16 << 20
    tensors = [arena.take((size,), torch.uint8).fill_(1) for _ in range(4)]
    before = resident()
    view = tensors.pop(1)[5:9]
    assert resident() > before - size // 2
    assert view.tolist() == [1] * 4
    del view
    gc.collect()
    assert resident() < before - size + (1 << 20)
    assert all(bool(tensor.all()) for tensor in tensors)


@on_linux
def test_a_mapping_goes_with_its_last_tensor() -> None:
    arena = Arena(CPU, chunk_bytes=4 << 20)
    tensors = [arena.take((3 << 20,), torch.uint8).fill_(1) for _ in range(20)]
    places = [tensor.data_ptr() for tensor in tensors]
    del arena
    assert all(is_mapped(place) for place in places)
    assert all(bool(tensor.all()) for tensor in tensors)
    tensors.clear()
    gc.collect()
    assert not any(is_mapped(place) for place in places)


def test_a_tensor_larger_than_a_mapping() -> None:
    arena = Arena(CPU, chunk_bytes=1 << 20)
    small, large, after = (arena.take((size,), torch.int32).fill_(1) for size in (10, 1 << 20, 10))
    assert int(small.sum() + large.sum() + after.sum()) == (1 << 20) + 20


def test_threads_get_memory_of_their_own() -> None:
    arena = Arena(CPU, chunk_bytes=1 << 20)
    made: list[tuple[int, Tensor]] = []

    def take(number: int) -> None:
        made.extend((number, arena.take((1000,), torch.int32).fill_(number)) for _ in range(200))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 800
    assert all(bool((tensor == number).all()) for number, tensor in made)


def test_copies_and_files_hold_one_tensor() -> None:
    arena = Arena(CPU)
    arena.take((1 << 20,), torch.uint8)
    tensor = arena.take((100, 10), torch.int32).copy_(torch.arange(1000).view(100, 10))
    file = io.BytesIO()
    torch.save(tensor, file)
    assert file.tell() < 10_000
    file.seek(0)
    assert torch.equal(torch.load(file), tensor)
    assert torch.equal(copy.deepcopy(tensor), tensor)
    shared = tensor.clone()
    assert torch.equal(tensor.share_memory_(), shared)
    assert tensor.is_shared()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_and_its_parent_write_and_free_apart() -> None:
    script = """
import os
os.environ["OMP_NUM_THREADS"] = "1"  # a fork has no threads of its parent's, and would wait for them
import torch
from qload.torch.memory import Arena
tensor = Arena(torch.device("cpu")).take((1 << 20,), torch.uint8).fill_(1)
into, out = os.pipe(), os.pipe()
if os.fork() == 0:
    os.read(into[0], 1)
    kept = bool((tensor == 1).all())
    tensor.fill_(3)
    del tensor
    os.write(out[1], b"y" if kept else b"n")
    os._exit(0)
tensor.fill_(2)
os.write(into[1], b"g")
answer = os.read(out[0], 1)
print(answer == b"y" and bool((tensor == 2).all()))
"""
    assert run(script) == ("True\n", "")


def test_a_process_ends_without_a_word() -> None:
    script = """
import torch
from qload.torch.memory import Arena
arena = Arena(torch.device("cpu"))
class Holder:
    pass
holder = Holder()
holder.itself, holder.tensor = holder, arena.take((1 << 20,), torch.uint8)
kept = [arena.take((1 << 14,), torch.int32) for _ in range(50)]
"""
    assert run(script) == ("", "")


def run(script: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_the_default_device_does_not_matter_to_an_arena() -> None:
    with torch.device("meta"):
        tensor = Arena(CPU).take((4,), torch.int32)
        empty = Arena(CPU).take((0,), torch.int32)
    assert tensor.device == empty.device == CPU


def test_other_devices_have_torchs_own_memory() -> None:
    meta = torch.device("meta")
    assert Arena(meta).take((3, 4), torch.float16).device == meta
