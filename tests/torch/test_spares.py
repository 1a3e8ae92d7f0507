"""What tensors leave while an arena is open serves the next ones, and goes back to the system in the end."""

import gc
import threading
from contextlib import closing

import pytest
import torch
from residence import on_linux, resident
from torch import Tensor

from qload.torch.memory import Arena

CPU = torch.device("cpu")
SIZE = 8 << 20


def take(arena: Arena, nbytes: int = SIZE, fill: int = 1) -> Tensor:
    return arena.take((nbytes,), torch.uint8, zeros=False).fill_(fill)


def test_the_next_tensor_has_the_memory_of_the_last_one() -> None:
    with closing(Arena(CPU, spare_bytes=SIZE)) as arena:
        first = take(arena)
        place = first.data_ptr()
        view = first[5:]
        del first
        second = take(arena)
        assert second.data_ptr() != place
        assert bool((view == 1).all())
        del view
        third = take(arena, fill=3)
        assert third.data_ptr() == place
        assert third.untyped_storage().nbytes() == SIZE
        assert bool((second == 1).all())


def test_small_tensors_are_made_of_what_larger_ones_left() -> None:
    with closing(Arena(CPU, spare_bytes=SIZE)) as arena:
        place = take(arena).data_ptr()
        sizes = (3 << 20, (1 << 20) + 5, 4 << 20)
        parts = [take(arena, size, fill) for fill, size in enumerate(sizes)]
        assert [part.data_ptr() - place for part in parts[:2]] == [0, 3 << 20]
        assert not 0 <= parts[2].data_ptr() - place < SIZE
        assert all(part.data_ptr() % 64 == 0 for part in parts)
        assert [part.untyped_storage().nbytes() for part in parts] == list(sizes)
        assert all(bool((part == fill).all()) for fill, part in enumerate(parts))


def test_a_tensor_has_a_storage_of_its_bytes_in_memory_of_a_few_more() -> None:
    with closing(Arena(CPU, spare_bytes=SIZE)) as arena:
        place = take(arena).data_ptr()
        tensor = take(arena, SIZE - 100)
        assert tensor.data_ptr() == place
        assert (len(tensor), tensor.untyped_storage().nbytes()) == (SIZE - 100, SIZE - 100)
        del tensor
        assert take(arena).data_ptr() == place


def test_the_last_one_is_kept_however_large_it_is() -> None:
    with closing(Arena(CPU, spare_bytes=SIZE)) as arena:
        first = take(arena)
        place = take(arena, 2 * SIZE).data_ptr()
        old = first.data_ptr()
        assert take(arena, 2 * SIZE).data_ptr() == place
        del first
        assert take(arena, SIZE).data_ptr() == old


def test_zeros_are_zeros() -> None:
    with closing(Arena(CPU, spare_bytes=SIZE)) as arena:
        take(arena)
        assert not arena.take((SIZE,), torch.uint8).any()


@on_linux
def test_an_arena_keeps_no_more_than_it_may() -> None:
    with closing(Arena(CPU, spare_bytes=SIZE)) as arena:
        held = take(arena)
        tensors = [take(arena) for _ in range(4)]
        before = resident()
        tensors.clear()
        gc.collect()
        assert before - 4 * SIZE - (1 << 20) < resident() < before - 3 * SIZE + (1 << 20)
    assert resident() < before - 4 * SIZE + (1 << 20)
    assert bool((held == 1).all())


@on_linux
@pytest.mark.parametrize("spare", [0, SIZE])
def test_a_closed_arena_keeps_nothing(spare: int) -> None:
    arena = Arena(CPU, spare_bytes=spare)
    held, left = take(arena), take(arena)
    arena.close()
    before = resident()
    del left
    gc.collect()
    assert resident() < before - SIZE + (1 << 20)
    assert bool((take(arena) + held == 2).all())


def test_garbage_in_cycles_is_left_too() -> None:
    class Holder:
        itself: object
        tensor: Tensor

    with closing(Arena(CPU, spare_bytes=SIZE)) as arena:
        holder = Holder()
        holder.itself, holder.tensor = holder, take(arena)
        place = holder.tensor.data_ptr()
        del holder
        gc.collect()
        assert take(arena).data_ptr() == place


def test_threads_share_what_is_left() -> None:
    faults: list[int] = []

    def work(number: int) -> None:
        for turn in range(40):
            tensors = [take(arena, size << 16, number) for size in (1, 3, 1 + turn % 5)]
            faults.extend(number for tensor in tensors if not bool((tensor == number).all()))

    with closing(Arena(CPU, spare_bytes=1 << 20)) as arena:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert faults == []
