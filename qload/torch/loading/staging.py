"""Host buffers of fixed size through which bytes pass on their way into parameters."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

HOST_SLAB_BYTES = 1 << 20
"""On the host a slab is what a core's cache holds, for what is read into it is copied at once."""
DEVICE_SLAB_BYTES = 16 << 20
DEVICE_SLABS = 6


class Staging:
    """Slabs of `size` bytes, each lent to one thread at a time.

    They are pinned where the device is a GPU: its copies out of them are queued on a stream of its own, and a slab is
    lent again once those are done. `size` is the bytes of one; they are made when they are first needed.
    """

    def __init__(self, device: torch.device, size: int | None = None, count: int | None = None) -> None:
        is_host = device.type == "cpu"
        self.device = device
        self.size = size or (HOST_SLAB_BYTES if is_host else DEVICE_SLAB_BYTES)
        self._is_pinned = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if self._is_pinned else None
        self._free: queue.LifoQueue[Slab | None] | queue.Queue[Slab | None]
        # The host's newest slab is in the cache; a GPU's oldest is the first that is done.
        self._free = queue.LifoQueue() if is_host else queue.Queue()
        for _ in range(count or DEVICE_SLABS):
            self._free.put(None)

    @contextmanager
    def borrow(self) -> Iterator["Slab"]:
        """A slab; waits until one is free."""
        slab = self._free.get()
        try:
            slab = slab or self._make()
            slab.wait()
            yield slab
        finally:
            self._free.put(slab)

    def catch_up(self) -> None:
        """Have the stream wait for what is queued on the caller's, whose memory the copies are to fill."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def await_event(self, event: "torch.cuda.Event | None") -> None:
        """Have what is queued on the caller's stream from now on wait for an event."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def finish(self) -> None:
        """Wait for every copy out of the slabs."""
        if self.stream is not None:
            self.stream.synchronize()

    def _make(self) -> "Slab":
        # Named, for the caller may have set another default device.
        buffer = torch.empty(self.size, dtype=torch.uint8, device="cpu", pin_memory=self._is_pinned)
        return Slab(buffer, self.device, self.stream)


class Slab:
    """A buffer on the host, and the event after which what was queued out of it is done."""

    def __init__(self, buffer: Tensor, device: torch.device, stream: Any) -> None:
        self.buffer = buffer
        self.memory = buffer.numpy().data
        self._device = device
        self._stream = stream
        self._event: torch.cuda.Event | None = None

    @contextmanager
    def queueing(self) -> Iterator[None]:
        """Inside, copies are queued on the stream of its own."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            yield
            if self._stream is not None:
                self._event = torch.cuda.Event()
                self._event.record(self._stream)

    def send(self, start: int, nbytes: int) -> Tensor:
        """A part of the buffer, on the device."""
        return self.buffer[start : start + nbytes].to(self._device, non_blocking=self._stream is not None)

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    @property
    def event(self) -> "torch.cuda.Event | None":
        """After it, what was queued last is done."""
        return self._event
