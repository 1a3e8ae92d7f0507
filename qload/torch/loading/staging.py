"""A host buffer of fixed size through which blocks pass on their way into parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

STAGING_BYTES = 32 << 20


class Staging:
    """Two slabs, lent in turn, so that one is filled while the other is copied to the device.

    They are pinned where the device is a GPU, so that its copies need not be waited for; `size` is the bytes
    of one slab.
    """

    def __init__(self, device: torch.device, nbytes: int = STAGING_BYTES) -> None:
        self.size = nbytes // 2
        self.device = device
        self.is_pinned = device.type == "cuda"
        self._slabs: list[_Slab] = []
        self._turn = 0

    @contextmanager
    def borrow(self, nbytes: int) -> Iterator[Tensor]:
        """A slab's first `nbytes`; it is lent again once what was queued on the device inside the block is done."""
        slab = self._next()
        slab.wait()
        yield slab.buffer[:nbytes]
        slab.queue()

    def finish(self) -> None:
        """Wait for every copy out of the slabs."""
        for slab in self._slabs:
            slab.wait()

    def _next(self) -> "_Slab":
        turn = self._turn
        self._turn = (turn + 1) % 2
        if turn == len(self._slabs):
            self._slabs.append(_Slab(self.size, self.device, self.is_pinned))
        return self._slabs[turn]


class _Slab:
    def __init__(self, nbytes: int, device: torch.device, pinned: bool) -> None:
        # Named, for the caller may have set another default device.
        self.buffer = torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        self._device = device
        self._event = torch.cuda.Event() if pinned else None

    def queue(self) -> None:
        """Remember what has been queued on the device's current stream, which need not be the current device's."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()
