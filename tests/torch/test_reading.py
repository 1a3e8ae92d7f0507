"""Readers: any region of any tensor, through a buffer of any size, is what slicing gives."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from safetensors.torch import save_file
from torch import Tensor

from qload.checkpoint import Folder, Interleaving, read_header
from qload.errors import QloadError
from qload.layout import Interval, Region
from qload.plan import Copy
from qload.torch.loading.holding import MemoryReader
from qload.torch.loading.orders import Order, Reader
from qload.torch.loading.reading import FileReader

CPU = torch.device("cpu")
TENSORS = {
    "matrix": torch.arange(48 * 40, dtype=torch.int32).reshape(48, 40),
    "stack": torch.randn(4, 24, 16).to(torch.bfloat16),
    "vector": torch.arange(1000, dtype=torch.int64),
    "scalar": torch.tensor(3.5),
    "small": torch.randn(8, 16).to(torch.float8_e4m3fn),
    "empty": torch.zeros(0, 4),
    "wide": torch.arange(12 * 96, dtype=torch.int32).reshape(12, 96),
    "tall": torch.arange(5 * 40 * 160).to(torch.int16).reshape(5, 40, 160),
    "broad": torch.arange(7 * 3000, dtype=torch.int32).reshape(7, 3000),
    "deep": torch.arange(3 * 4 * 40 * 16, dtype=torch.float32).reshape(3, 4, 40, 16),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading")
    save_file(TENSORS, path / "f")
    return path


def readers(folder: Path) -> Iterator[Reader]:
    yield MemoryReader(TENSORS)
    for nbytes in (1 << 20, 1000, 300, 16):
        yield FileReader(folder, CPU, slab_bytes=nbytes)


def copy_of(folder: Path, name: str, region: Region) -> Copy:
    entry = read_header(Folder(folder), "f").tensors[name]
    return Copy(entry, entry.shape, region, region)


def read(reader: Reader, copy: Copy, destination: Tensor) -> int:
    """Fill one destination; the bytes that were read for it."""
    before, order = reader.bytes_read, Order(copy, destination)
    assert [landed is order for landed in reader.read([order])] == [True]
    return reader.bytes_read - before


def as_bytes(tensor: Tensor) -> Tensor:
    return torch.empty_strided((tensor.numel(),), (1,), dtype=tensor.dtype).copy_(tensor.reshape(-1)).view(torch.uint8)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_region_is_the_slice(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TENSORS)))
    region = tuple(draw_interval(data, size) for size in TENSORS[name].shape)
    expected = TENSORS[name][tuple(interval.slice for interval in region)]
    for reader in readers(folder):
        destination = torch.zeros(expected.shape, dtype=expected.dtype)
        read(reader, copy_of(folder, name, region), destination)
        reader.close()
        assert torch.equal(as_bytes(destination), as_bytes(expected))


def draw_interval(data: st.DataObject, size: int) -> Interval:
    if not size:
        return Interval(0, 0)
    start = data.draw(st.integers(0, size - 1))
    return Interval(start, data.draw(st.integers(start + 1, size)), data.draw(st.sampled_from([1, 1, 1, 2, 3])))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_strips_are_the_slice_wherever_they_go(folder: Path, data: st.DataObject) -> None:
    """Of rows that are long enough: in place, into another dtype, and into columns of something wider."""
    name = data.draw(st.sampled_from(["wide", "tall", "broad", "deep"]))
    region = tuple(draw_interval(data, size) for size in TENSORS[name].shape)
    expected = TENSORS[name][tuple(interval.slice for interval in region)]
    dtype = data.draw(st.sampled_from([expected.dtype, torch.float64]))
    for reader in readers(folder):
        for wider in (0, 3):
            destination = torch.zeros((*expected.shape[:-1], expected.shape[-1] + wider), dtype=dtype)
            read(reader, copy_of(folder, name, region), destination[..., wider:])
            assert torch.equal(destination[..., wider:], expected.to(dtype))
            assert not destination[..., :wider].any()
        reader.close()


def test_of_long_rows_only_what_is_wanted_is_read(folder: Path) -> None:
    """From a stack a share of each expert's rows, and of a matrix long runs of columns."""
    reader = FileReader(folder, CPU, slab_bytes=1000)
    for name, region in (
        ("broad", (Interval(2, 7, 2), Interval(64, 1200))),
        ("tall", (Interval(1, 5), Interval(8, 16), Interval(0, 160))),
        ("deep", (Interval(0, 3), Interval(1, 3), Interval(8, 40), Interval(0, 16))),
    ):
        expected = TENSORS[name][tuple(interval.slice for interval in region)]
        for dtype in (expected.dtype, torch.float64):
            for wider in (0, 3):
                destination = torch.zeros((*expected.shape[:-1], expected.shape[-1] + wider), dtype=dtype)
                assert read(reader, copy_of(folder, name, region), destination[..., wider:]) == expected.nbytes
                assert torch.equal(destination[..., wider:], expected.to(dtype))
    reader.close()


def test_casts_and_strided_destinations(folder: Path) -> None:
    region = (Interval(0, 48), Interval(8, 24))
    for reader in readers(folder):
        wide = torch.full((48, 64), -1.0)
        read(reader, copy_of(folder, "matrix", region), wide[:, 10:26])
        reader.close()
        assert torch.equal(wide[:, 10:26], TENSORS["matrix"][:, 8:24].float())
        assert (wide[:, :10] == -1).all()
        assert (wide[:, 26:] == -1).all()


def test_a_view_of_the_same_bytes(folder: Path) -> None:
    entry = read_header(Folder(folder), "f").tensors["vector"]
    region = (Interval(0, 100), Interval(2, 5))
    for reader in readers(folder):
        destination = torch.zeros(100, 3, dtype=torch.int64)
        read(reader, Copy(entry, (100, 10), region, region), destination)
        reader.close()
        assert torch.equal(destination, TENSORS["vector"].view(100, 10)[:, 2:5])


def test_an_expert_of_a_stack(folder: Path) -> None:
    entry = read_header(Folder(folder), "f").tensors["matrix"]
    region = (Interval(0, 48), Interval(0, 40))
    for reader in readers(folder):
        stack = torch.zeros(3, 48, 40, dtype=torch.int32)
        read(reader, Copy(entry, entry.shape, region, region), stack[1:2])
        reader.close()
        assert torch.equal(stack[1], TENSORS["matrix"])
        assert not stack[0].any()


def test_contiguous_bytes_are_read_once_and_strips_by_rows(folder: Path) -> None:
    reader = FileReader(folder, CPU, slab_bytes=1 << 20)
    rows = copy_of(folder, "matrix", (Interval(8, 16), Interval(0, 40)))
    strip = copy_of(folder, "matrix", (Interval(0, 48), Interval(0, 8)))
    assert read(reader, rows, torch.empty(8, 40, dtype=torch.int32)) == 8 * 40 * 4
    assert read(reader, strip, torch.empty(48, 8, dtype=torch.int32)) == 48 * 40 * 4
    reader.close()


def test_a_system_that_reads_less_than_it_is_asked_to_is_asked_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Linux does past two gigabytes, and any system may."""
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, start: preadv(file, [buffers[0][:7]], start))
    for reader in readers(folder):
        destination = torch.zeros(8, 40, dtype=torch.int32)
        read(reader, copy_of(folder, "matrix", (Interval(8, 16), Interval(0, 40))), destination)
        reader.close()
        assert torch.equal(destination, TENSORS["matrix"][8:16])


def test_a_file_that_shrinks_is_an_error_with_the_tensor(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "f").read_bytes()
    (tmp_path / "f").write_bytes(whole[: len(whole) // 2])
    last = max(read_header(Folder(folder), "f").tensors.values(), key=lambda entry: entry.stop)
    region = tuple(Interval(0, size) for size in last.shape)
    reader = FileReader(tmp_path, CPU)
    with pytest.raises(QloadError, match=f"{last.name} in f: the file ends before"):
        read(reader, Copy(last, last.shape, region, region), torch.empty(last.shape))
    reader.close()


INTERLEAVED = {"matrix": Interleaving(8, 2), "vector": Interleaving(20, 4), "small": Interleaving(8, 2)}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_region_of_interleaved_rows_is_the_slice(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(INTERLEAVED)))
    order, stored = INTERLEAVED[name], TENSORS[name]
    region = tuple(draw_interval(data, size) for size in stored.shape)
    ordered = stored.unflatten(0, (-1, order.size // order.runs, order.runs)).transpose(1, 2).flatten(0, 2)
    expected = ordered[tuple(interval.slice for interval in region)]
    copy = copy_of(folder, name, region)
    copy = structs.replace(copy, entry=structs.replace(copy.entry, interleaving=order))
    for nbytes in (1 << 20, 300, 16):
        reader = FileReader(folder, CPU, slab_bytes=nbytes)
        found = torch.empty(expected.shape, dtype=expected.dtype)
        read(reader, copy, found)
        reader.close()
        assert torch.equal(as_bytes(found), as_bytes(expected))


def test_a_shift_is_added_before_the_cast(folder: Path) -> None:
    stored = torch.tensor([1.0000001, 2.5])
    save_file({"norm": stored}, folder / "norms")
    entry = read_header(Folder(folder), "norms").tensors["norm"]
    entry = structs.replace(entry, shift=-1.0)
    whole = (Interval(0, 2),)
    for dtype in (torch.float32, torch.bfloat16):
        found = torch.empty(2, dtype=dtype)
        reader = FileReader(folder, CPU)
        assert read(reader, Copy(entry, (2,), whole, whole), found) == 8
        reader.close()
        assert torch.equal(found, (stored - 1).to(dtype))
