"""Reads with fastsafetensors, which makes an image of a file on the device, and gives tensors out of it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from qload.errors import QloadError
from qload.torch.loading.holding import copy_stored
from qload.torch.loading.orders import Order
from qload.torch.loading.reading import FileReader

WINDOW_BYTES = 256 << 20
"""The stored tensors that are read at a time, of one file."""
_DIRECT_STORAGE = Path("/dev/nvidia-fs0")
"""The driver of GPUDirect Storage, without which fastsafetensors reads by the host."""


class ImageReader:
    """Has whole stored tensors read onto the device, and copies the regions of them that are wanted.

    Those of up to WINDOW_BYTES are read at a time, or one that is larger, and nothing else of their file. What it
    costs: a rank reads all of a tensor of which it wants a share, and while a file is read the image of all of it takes
    memory of a GPU (on the host only the pages that are read into). In return bytes pass by the host where a GPU has
    GPUDirect Storage; elsewhere threads of its own read them. Files of other formats are read as by FileReader.
    `module` is fastsafetensors; source: its loader.py and copier/, version 0.5.

    Raises QloadError for a file that it cannot read, with its reason.
    """

    def __init__(self, module: Any, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self._device = _choose_device(device)
        by_host = self._device.type == "cpu" or not _DIRECT_STORAGE.exists()
        self._loader = module.SafeTensorsFileLoader(module.SingleGroup(), str(self._device), nogds=by_host)
        self._others = FileReader(folder, device)
        self._read = 0

    @property
    def bytes_read(self) -> int:
        return self._read + self._others.bytes_read

    def read(self, orders: Iterable[Order]) -> Iterator[Order]:
        for is_imaged, group in groupby(orders, key=_is_imaged):
            if not is_imaged:
                yield from self._others.read(group)
                continue
            for window in _take_windows(group):
                self._fill(window)
                # What has landed may be freed by whoever takes it, if nothing here holds it.
                window.reverse()
                while window:
                    yield window.pop()

    def close(self) -> None:
        self._loader.close()
        self._others.close()

    def _fill(self, window: list[Order]) -> None:
        wanted = [order for order in window if order.destination.numel()]
        if not wanted:
            return
        names = {order.copy.entry.name for order in wanted}
        with self._open_image(wanted[0].copy.entry.file, names) as image:
            for copy, destination, _ in wanted:
                copy_stored(image.get_tensor(copy.entry.name), copy, destination)

    @contextmanager
    def _open_image(self, file: str, names: set[str]) -> Iterator[Any]:
        """An image of a file's tensors of these names, for as long as copies are made of them."""
        is_gpu = self._device.type == "cuda"
        # It changes the caller's device, and reads into memory beside the stream that others still use it on.
        with torch.cuda.device(self._device) if is_gpu else nullcontext():
            self._synchronize()
            try:
                image = self._make_image(file, names)
            except Exception as error:  # it raises nothing more special
                found, remedy = str(error), "reader='buffered' reads every format"
                raise QloadError("fastsafetensors cannot read it", where=file, found=found, remedy=remedy) from error
            finally:
                self._loader.reset()
            try:
                yield image
            finally:
                self._synchronize()
                image.close()

    def _make_image(self, file: str, names: set[str]) -> Any:
        path = str(self._folder / file)
        self._loader.set_tensor_filter(names.__contains__)
        self._loader.add_filenames({0: [path]})
        image = self._loader.copy_files_to_device()
        header, _ = self._loader.meta[path]
        self._read += sum(stop - start for start, stop in header.select_byte_ranges(names.__contains__))
        return image

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


def _choose_device(device: torch.device) -> torch.device:
    """Where the image is: on the GPU, by its number, or on the host for every other device."""
    if device.type != "cuda":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _is_imaged(order: Order) -> bool:
    """Whether it is of a safetensors file, as it was stored there."""
    entry = order.copy.entry
    return entry.file.endswith(".safetensors") and entry.interleaving is None and not entry.shift


def _take_windows(orders: Iterable[Order]) -> Iterator[list[Order]]:
    """Orders of one file whose stored tensors are WINDOW_BYTES about; those of one tensor stay together."""
    window: list[Order] = []
    nbytes = 0
    for order in orders:
        entry = order.copy.entry
        last = window[-1].copy.entry if window else None
        is_same = last is not None and (last.name, last.file) == (entry.name, entry.file)
        size = 0 if is_same else entry.nbytes
        if last is not None and (last.file != entry.file or nbytes + size > max(nbytes, WINDOW_BYTES)):
            yield window
            window, nbytes = [], 0
        window.append(order)
        nbytes += size
    if window:
        yield window
