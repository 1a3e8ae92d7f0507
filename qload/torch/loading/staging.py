"""A host buffer of fixed size through which blocks pass on their way into parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

STAGING_BYTES = 32 << 20


class Staging:
    """Two slabs, lent in turn, so that one is filled while the other is copied to the device.

    The slabs are pinned where the device is not the host; `size` is the bytes of one.
    """

    def __init__(self, device: torch.device, nbytes: int = STAGING_BYTES) -> None:
        self.size = nbytes // 2
        self._device = device
        self._slabs: list[_Slab] = []
        self._turn = 0

    @contextmanager
    def borrow(self, nbytes: int) -> Iterator[Tensor]:
        """A slab's first `nbytes`; it is lent again once the copies queued inside the block are done."""
        slab = self._next()
        slab.wait()
        yield slab.buffer[:nbytes]
        slab.queue()

    def finish(self) -> None:
        """Wait for every copy out of the slabs."""
        for slab in self._slabs:
            slab.wait()

    def _next(self) -> "_Slab":
        if len(self._slabs) < 2:
            self._slabs.append(_Slab(self.size, self._device))
        self._turn += 1
        return self._slabs[self._turn % len(self._slabs)]


class _Slab:
    def __init__(self, nbytes: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.buffer = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
        self._event = torch.cuda.Event() if pinned else None

    def queue(self) -> None:
        """Remember what has been queued on the device's current stream."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()
