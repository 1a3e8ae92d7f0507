"""Reads what is in memory already."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from qload.plan import Copy
from qload.torch.copying import copy_region
from qload.torch.dtypes import torch_dtype
from qload.torch.loading.orders import Order


class MemoryReader:
    """Copies from tensors that are in memory, by the names of their entries."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.bytes_read = 0

    def read(self, orders: Iterable[Order]) -> Iterator[Order]:
        for order in orders:
            self.bytes_read += copy_stored(self._tensors[order.copy.entry.name], order.copy, order.destination)
            yield order

    def close(self) -> None:
        pass


def copy_stored(stored: Tensor, copy: Copy, destination: Tensor) -> int:
    """Fill a copy's destination from the whole stored tensor; returns the bytes copied."""
    dtype = torch_dtype(copy.entry.dtype)
    if stored.dtype != dtype:
        stored = stored.contiguous().view(dtype)
    return copy_region(stored.reshape(copy.view), copy.source, destination, turned=copy.turned)
