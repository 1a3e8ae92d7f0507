"""Reads with safetensors' own library, tensor after tensor, in the caller's thread."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qload.errors import QloadError
from qload.plan import Copy
from qload.torch.dtypes import torch_dtype
from qload.torch.loading.holding import copy_stored
from qload.torch.loading.orders import Order


class SliceReader:
    """Gets slices of what safetensors maps, and copies them; of what is viewed in another shape, the whole tensor.

    Raises QloadError for files that are not of safetensors' format.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._files: dict[str, Any] = {}
        self._opened = ExitStack()
        self.bytes_read = 0

    def read(self, orders: Iterable[Order]) -> Iterator[Order]:
        for order in orders:
            self.bytes_read += self._fill(order.copy, order.destination)
            yield order

    def close(self) -> None:
        self._files.clear()
        self._opened.close()

    def _fill(self, copy: Copy, destination: Tensor) -> int:
        file, entry = self._open(copy.entry.file), copy.entry
        if entry.interleaving is not None or entry.shift:
            remedy = "reader='buffered' reads every format"
            raise QloadError("the reader cannot undo what the producer did", where=entry.name, remedy=remedy)
        if copy.view != entry.shape or torch_dtype(entry.dtype).itemsize * destination.numel() == entry.nbytes:
            return copy_stored(file.get_tensor(entry.name), copy, destination)
        part = file.get_slice(entry.name)[tuple(interval.slice for interval in copy.source)]
        whole = tuple(type(interval)(0, interval.size) for interval in copy.source)
        sizes = tuple(interval.size for interval in copy.source)
        return copy_stored(part, Copy(copy.entry, sizes, whole, copy.destination, copy.turned), destination)

    def _open(self, name: str) -> Any:
        if name not in self._files:
            try:
                opened = safe_open(self._folder / name, framework="pt", device="cpu")
                self._files[name] = self._opened.enter_context(opened)
            except SafetensorError as error:
                reason, remedy = str(error), "reader='buffered' reads every format"
                raise QloadError("safetensors cannot read it", where=name, found=reason, remedy=remedy) from error
        return self._files[name]
