"""What every reader holds to: the same bytes of every format, orders that land, and threads that end."""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from samples import DATA, DEMO, is_sound, is_swept, samples
from torch import Tensor

import qload
from qload import Registry
from qload.checkpoint import Folder, read_header
from qload.declare import ParameterSpec
from qload.errors import QloadError, ShardError
from qload.examination import open_checkpoint
from qload.geometry import Geometry, Shard, Sharding, column, row
from qload.layout import Interval
from qload.outline import outline
from qload.plan import Copy, Plan, Slot, make_plan
from qload.resolution import resolve
from qload.sharding import cut_layer
from qload.torch.copying import copy_region
from qload.torch.dtypes import torch_dtype
from qload.torch.loading import direct, gathering, imaging, streaming
from qload.torch.loading.caching import is_cold
from qload.torch.loading.direct import DirectFile
from qload.torch.loading.files import DataFile, Target
from qload.torch.loading.orders import Order, Reader, reading
from qload.torch.loading.readers import make_reader
from qload.torch.loading.reading import FileReader
from qload.torch.loading.slices import SliceReader

CPU = torch.device("cpu")
READERS: dict[str, Callable[[Path], Reader]] = {
    "files": lambda folder: FileReader(folder, CPU),
    "one by one": lambda folder: FileReader(folder, CPU, threads=1, ahead=0, slab_bytes=4096),
    "the caller's thread": lambda folder: FileReader(folder, CPU, threads=0, slab_bytes=1000),
    "past the cache": lambda folder: FileReader(folder, CPU, open_file=DirectFile),
}
OPTIONAL_PACKAGES = {"runai": "runai-model-streamer", "fastsafetensors": "fastsafetensors"}
OPTIONAL: dict[str, Callable[[Path], Reader]] = {
    name: partial(make_reader, name, device=CPU, alone=True) for name in OPTIONAL_PACKAGES
}
folders = [path for path in samples() if is_sound(path) and is_swept(path) and list(path.glob("*.safetensors"))]


def plans(path: Path, registry: Registry) -> Iterator[Plan]:
    """What ranks of several sizes read of a checkpoint's modules, each divided by its outputs and by its inputs."""
    checkpoint = open_checkpoint(path, registry)
    quantization = resolve(checkpoint, registry)
    drawn = outline(checkpoint, quantization)
    for sharding, size in [(column, 1), *((each, size) for each in (column, row) for size in (2, 4, 8))]:
        targets = []
        for target in drawn.targets:
            specs = [spec for spec in quantization.declare(target.treatment, target.geometry) if spec.loaded]
            shard = share(sharding, target.geometry, specs, size)
            targets += [replace(target, shard=shard)] if shard is not None else []
        yield make_plan(checkpoint, quantization, targets, is_expected=lambda name: True)


def share(sharding: Sharding, geometry: Geometry, specs: Sequence[ParameterSpec], size: int) -> Shard | None:
    try:
        return cut_layer(geometry, sharding, specs, "", size - 1, size)
    except ShardError:
        return None


def orders(plan: Plan) -> Iterator[Order]:
    for layer in plan.layers:
        for slot in layer.slots:
            yield from orders_of(slot)


def orders_of(slot: Slot) -> Iterator[Order]:
    tensor = torch.zeros(slot.shape, dtype=torch_dtype(slot.dtype))
    for copy in slot.copies:
        yield Order(copy, tensor[tuple(interval.slice for interval in copy.destination)])


def read_plainly(folder: Path, copy: Copy, destination: Tensor) -> None:
    """What a copy is, from the whole tensor's bytes."""
    entry = copy.entry
    raw = np.fromfile(folder / entry.file, dtype=np.uint8, count=entry.nbytes, offset=entry.start)
    stored = torch.from_numpy(raw).view(torch_dtype(entry.dtype))
    if entry.interleaving is not None:
        rows = stored.view(entry.shape)
        stored = rows[[entry.interleaving.place(row) for row in range(len(rows))]]
    if entry.shift:
        stored = stored.to(torch.promote_types(stored.dtype, torch.float32)) + entry.shift
    copy_region(stored.reshape(copy.view), copy.source, destination, turned=copy.turned)


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("path", folders, ids=lambda path: path.name)
def test_every_reader_reads_the_same_of_every_format(path: Path, registry: Registry) -> None:
    hold_to_the_law(path, registry, READERS)


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("path", folders, ids=lambda path: path.name)
def test_so_does_every_reader_of_another_package(path: Path, name: str, registry: Registry) -> None:
    require(name)
    hold_to_the_law(path, registry, {name: OPTIONAL[name]})


def require(name: str) -> None:
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL_PACKAGES[name].replace("-", "_"))


def hold_to_the_law(path: Path, registry: Registry, readers: dict[str, Callable[[Path], Reader]]) -> None:
    for plan in plans(path, registry):
        expected = []
        for order in orders(plan):
            read_plainly(path, order.copy, order.destination)
            expected.append(as_bytes(order.destination))
        for name, make in readers.items():
            given = list(orders(plan))
            reader = make(path)
            landed = list(reader.read(given))
            reader.close()
            assert sorted(map(id, landed)) == sorted(map(id, given)), name
            for order, right in zip(given, expected, strict=True):
                assert torch.equal(as_bytes(order.destination), right), (name, order.copy)


@pytest.fixture
def matrices(tmp_path: Path) -> Path:
    """Two files, of which one has 16 matrices of 1 MiB, with rows of 4 KiB."""
    for file, count in (("a", 16), ("b", 1)):
        save_file(
            {f"{file}{n:02}": torch.full((256, 1024), n, dtype=torch.int32) for n in range(count)}, tmp_path / file
        )
    return tmp_path


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A file of 16 matrices of 1 MiB, with rows of 16 KiB."""
    save_file({f"a{n:02}": torch.full((64, 4096), n, dtype=torch.int32) for n in range(16)}, tmp_path / "a")
    return tmp_path


def take(folder: Path, file: str, columns: Interval | None = None) -> list[Order]:
    """Orders for all tensors of a file, or some columns of each."""
    found = []
    for entry in sorted(read_header(Folder(folder), file).tensors.values(), key=lambda entry: entry.start):
        rows, all_columns = entry.shape
        region = (Interval(0, rows), columns or Interval(0, all_columns))
        destination = torch.zeros(rows, region[1].size, dtype=torch.int32)
        found.append(Order(Copy(entry, entry.shape, region, region), destination))
    return found


def readers_at_work() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("qload-read")]


@pytest.mark.parametrize("columns", [Interval(256, 1792), Interval(8, 16)])
@pytest.mark.parametrize("without", ["the calls", "nothing"])
def test_strips_are_read_and_nothing_between(
    wide: Path, without: str, columns: Interval, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without == "the calls":
        monkeypatch.setattr(gathering, "_CALLS", {})
    reader, given = FileReader(wide, CPU), take(wide, "a", columns)
    assert len(list(reader.read(given))) == 16
    reader.close()
    assert all(bool((order.destination == number).all()) for number, order in enumerate(given))
    assert reader.bytes_read == sum(order.destination.nbytes for order in given)


@pytest.mark.parametrize("columns", [None, Interval(256, 640), Interval(0, 8)])
@pytest.mark.parametrize("shape", ["wide", "matrices"])
@pytest.mark.parametrize("name", [*READERS, "runai"])
def test_a_file_that_ends_too_early_is_an_error(
    name: str, shape: str, columns: Interval | None, request: pytest.FixtureRequest
) -> None:
    require(name)
    matrices: Path = request.getfixturevalue(shape)
    given = take(matrices, "a", columns)
    for cut in (16384, 4096 * 300 + 7, 4096 * 800):
        os.truncate(matrices / "a", given[-1].copy.entry.stop - cut)
        reader = (READERS | OPTIONAL)[name](matrices)
        with pytest.raises(QloadError, match=r"a1\d in a: the file ends before the tensor does"):
            list(reader.read(given))
        reader.close()
        assert not readers_at_work()


@pytest.mark.parametrize("ahead", [2 << 20, None], ids=["as said", "two tasks for each thread"])
def test_of_what_is_not_taken_only_so_much_is_read(
    matrices: Path, ahead: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qload.torch.loading.reading.TASK_BYTES", 1 << 19)
    given = []

    def give() -> Iterator[Order]:
        for order in take(matrices, "a"):
            given.append(order)
            yield order

    reader = FileReader(matrices, CPU, threads=2, ahead=ahead)
    with reading(reader, give()) as landed:
        for number, _ in enumerate(landed, 1):
            # What is ahead, a window, and what is just being landed.
            assert len(given) <= number + 5
    reader.close()
    assert len(given) == 16


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whoever_stops_stops_the_threads(matrices: Path, error: type[BaseException]) -> None:
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    reader = FileReader(matrices, CPU, ahead=2 << 20)

    def stop() -> None:
        with reading(reader, take(matrices, "a")) as landed:
            for _ in landed:
                raise error

    with pytest.raises(error):
        stop()
    reader.close()
    assert not readers_at_work()
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


def test_a_fault_of_who_gives_orders_stops_the_threads(matrices: Path) -> None:
    def give() -> Iterator[Order]:
        yield from take(matrices, "a")[:9]
        raise ValueError("enough")

    reader = FileReader(matrices, CPU, ahead=1 << 20)
    with pytest.raises(ValueError, match="enough"):
        list(reader.read(give()))
    reader.close()
    assert not readers_at_work()


def test_reading_goes_on_while_the_caller_works(matrices: Path) -> None:
    """When the first order has landed, the second file is read without any further question."""
    seen = threading.Event()

    class Seen(DataFile):
        def read(self, targets: Iterable[Target]) -> int:
            if self.name == "b":
                seen.set()
            return super().read(targets)

    reader = FileReader(matrices, CPU, open_file=Seen)
    given = take(matrices, "a") + take(matrices, "b")
    with reading(reader, given) as landed:
        next(landed)
        assert seen.wait(60)
    reader.close()


def test_a_file_system_that_refuses_is_read_through_the_cache(matrices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv

    def refuse(file: int, buffers: list[memoryview], start: int, *flags: int) -> int:
        if os.get_blocking(file) and len(buffers[0]) % direct.BLOCK_BYTES == 0 and start % direct.BLOCK_BYTES == 0:
            raise OSError(errno.EINVAL, "no")
        return preadv(file, buffers, start, *flags)

    monkeypatch.setattr(os, "preadv", refuse)
    given = take(matrices, "a")
    reader = FileReader(matrices, CPU, open_file=DirectFile)
    assert len(list(reader.read(given))) == 16
    reader.close()
    assert all(bool((order.destination == number).all()) for number, order in enumerate(given))


def test_a_file_that_was_just_read_is_not_cold(matrices: Path) -> None:
    (matrices / "a").read_bytes()
    assert not is_cold(matrices / "a")


@pytest.mark.parametrize("name", ["auto", "buffered", "direct", "safetensors", *OPTIONAL])
@pytest.mark.parametrize("folder", [DEMO.name, "gptq-4bit-g32-sym-descact", "hf-gptoss-mxfp4"])
def test_a_reader_can_be_asked_for(folder: str, name: str) -> None:
    require(name)
    expected = qload.load(DATA / folder, reader=lambda path, device: FileReader(path, device, threads=1))
    found = qload.load(DATA / folder, reader=name)
    for key, tensor in expected.state_dict().items():
        assert torch.equal(as_bytes(found.state_dict()[key]), as_bytes(tensor)), key


def test_a_reader_that_nobody_knows() -> None:
    with pytest.raises(QloadError, match=r"no reader has that name .*'fast'"):
        qload.load(DEMO, reader="fast")


def test_safetensors_says_what_it_cannot_read(tmp_path: Path, matrices: Path) -> None:
    given = take(matrices, "a")
    (tmp_path / "a").write_bytes(b"no such format")
    reader = SliceReader(tmp_path, CPU)
    with pytest.raises(QloadError, match="a: safetensors cannot read it"):
        list(reader.read(given))
    reader.close()


@pytest.fixture
def shards(matrices: Path) -> Path:
    """The same under the names of safetensors' files."""
    for name in ("a", "b"):
        (matrices / name).rename(matrices / f"{name}.safetensors")
    return matrices


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_reader_whose_package_is_not_there_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = OPTIONAL_PACKAGES[name]
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(QloadError, match=f"{package}: the reader's package is not installed .*; pip install {package}"):
        qload.load(DEMO, reader=name)


@pytest.mark.parametrize(
    ("columns", "nbytes"),
    [(None, 256 * 4096), (Interval(512, 1024), 256 * 2048), (Interval(256, 640), 255 * 4096 + 1536)],
    ids=["whole tensors", "long rows one by one", "short rows with what lies between"],
)
def test_the_streamer_reads_ranges(
    shards: Path, columns: Interval | None, nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("runai")
    monkeypatch.setattr(streaming, "SHORTEST_RANGE", 2048)
    given = take(shards, "a.safetensors", columns)
    reader = OPTIONAL["runai"](shards)
    assert len(list(reader.read(given))) == 16
    reader.close()
    assert all(bool((order.destination == number).all()) for number, order in enumerate(given))
    assert reader.bytes_read == 16 * nbytes


def test_an_image_has_the_wanted_tensors_and_no_others(shards: Path) -> None:
    require("fastsafetensors")
    given = take(shards, "a.safetensors", Interval(256, 640))[3:12:4] + take(shards, "b.safetensors")
    reader = OPTIONAL["fastsafetensors"](shards)
    assert len(list(reader.read(given))) == 4
    reader.close()
    assert [int(order.destination.unique()) for order in given] == [3, 7, 11, 0]
    assert reader.bytes_read == 4 << 20


def test_images_are_made_of_so_much_at_a_time(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("fastsafetensors")
    monkeypatch.setattr(imaging, "WINDOW_BYTES", 2 << 20)
    given = []

    def give() -> Iterator[Order]:
        for order in take(shards, "a.safetensors") + take(shards, "b.safetensors"):
            given.append(order)
            yield order

    reader = OPTIONAL["fastsafetensors"](shards)
    with reading(reader, give()) as landed:
        for number, _ in enumerate(landed, 1):
            # A window, and the first of the next.
            assert len(given) <= number + 2
    reader.close()
    assert len(given) == 17


def test_a_file_that_has_no_image_is_an_error(shards: Path) -> None:
    require("fastsafetensors")
    given = take(shards, "a.safetensors")
    os.truncate(shards / "a.safetensors", given[-1].copy.entry.stop - 4096)
    reader = OPTIONAL["fastsafetensors"](shards)
    with pytest.raises(QloadError, match=r"a\.safetensors: fastsafetensors cannot read it"):
        list(reader.read(given))
    reader.close()


def test_a_file_that_nobody_may_read_is_not_cold(tmp_path: Path) -> None:
    """It lies beside the weights, and is none of them: choosing a reader looks at every file of the folder."""
    assert not is_cold(tmp_path / "gone")
