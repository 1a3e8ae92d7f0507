"""What every reader is: it is given orders, and hands each back once its data are where they belong."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from qload.plan import Copy


class Order(NamedTuple):
    """A copy, the region of a parameter that it fills, and whatever who gives the order knows it by."""

    copy: Copy
    destination: Tensor
    tag: Any = None


class Reader(Protocol):
    """Whatever can fill regions of parameters with what copies name."""

    @property
    def bytes_read(self) -> int:
        """What has been read from storage so far; of what is in memory already, the bytes copied."""

    def read(self, orders: Iterable[Order]) -> Iterator[Order]:
        """Fill the destinations, and yield each order once its own has landed, in any order.

        Orders are taken, and yielded, in the thread that iterates; a reader takes only so many ahead that what has
        not been yielded stays bounded, for a destination takes memory from when its order is taken. What is queued on
        a GPU comes before all that is queued on its current stream from then on. To stop early, close the iterator:
        nothing is written to any destination after that. Raises QloadError for what cannot be read.
        """

    def close(self) -> None:
        """Give everything back; a reader that is closed reads no more."""


@contextmanager
def reading(reader: Reader, orders: Iterable[Order]) -> Iterator[Iterator[Order]]:
    """What the reader yields, which ends with the block: not only when it is collected."""
    landed = reader.read(orders)
    try:
        yield landed
    finally:
        if isinstance(landed, Generator):
            landed.close()


ReaderFactory = Callable[[Path, torch.device], Reader]
"""Makes the reader of the files in a folder, for a device."""
