"""Memory for tensors that are written once: on the host, pages that are large, fresh, and given back one by one.

What a load pays for on a CPU is less the reading than the first touch of each page of its destination. Huge pages
need one for 2 MiB, where ordinary ones need 512; they are asked for by `madvise`, and are ordinary ones where the
system has none.
"""

import mmap
import threading
from math import prod

import torch
from torch import Tensor

from qload.torch.spares import ALIGNMENT, Span, Spares, advise

CHUNK_BYTES = 256 << 20
_HUGE_PAGE = 2 << 20
_CAN_MAP = hasattr(mmap, "MAP_ANONYMOUS")
_ADVICE_HUGE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


class Arena:
    """Makes tensors on one device; on the CPU, out of mappings of many.

    Each tensor has a storage of its own, of just its bytes, that begins at a multiple of 64 bytes and cannot be
    resized. The pages that no other tensor has a part in go back to the system when its last view is gone, unless they
    are few, and a mapping when the last of its tensors is. Until it is closed, the arena itself keeps up to
    `spare_bytes` of them, or the last tensor's, for those to come. Threads may share it. On other devices, and on
    systems without anonymous mappings, the tensors are torch's own.
    """

    def __init__(self, device: torch.device, chunk_bytes: int = CHUNK_BYTES, spare_bytes: int = 0) -> None:
        self.device = device
        self._spares = Spares(spare_bytes)
        self._chunk_bytes = chunk_bytes
        self._chunk: _Chunk | None = None
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, *, zeros: bool = True) -> Tensor:
        """A new contiguous tensor of zeros; with `zeros=False`, of anything: what other tensors have left serves."""
        count = prod(shape)
        if self.device.type != "cpu" or not count or not _CAN_MAP:
            return (torch.zeros if zeros else torch.empty)(shape, dtype=dtype, device=self.device)
        nbytes = count * dtype.itemsize
        span = (None if zeros else self._spares.take(nbytes)) or self._cut(nbytes)
        return torch.frombuffer(span.lend(self._spares), dtype=dtype, count=count).view(shape)

    def close(self) -> None:
        """Keep none of what tensors leave from now on; new ones can be made all the same."""
        self._spares.close()

    def _cut(self, nbytes: int) -> Span:
        with self._lock:
            if self._chunk is None or not self._chunk.has_room(nbytes):
                self._chunk = _Chunk(max(self._chunk_bytes, nbytes))
            return self._chunk.cut(nbytes)


def make_afresh(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a tensor of its own; on a CPU of large pages, where it fills one: torch's own is of small ones."""
    nbytes = prod(shape) * dtype.itemsize
    if nbytes < _HUGE_PAGE:
        return torch.empty(shape, dtype=dtype, device=device)
    return Arena(device, nbytes).take(shape, dtype, zeros=False)


def copy_afresh(tensor: Tensor) -> Tensor:
    """A contiguous copy, in memory as `make_afresh` makes it."""
    return make_afresh(tuple(tensor.shape), tensor.dtype, tensor.device).copy_(tensor)


class _Chunk:
    """One mapping, cut from its first huge page on."""

    def __init__(self, nbytes: int) -> None:
        self._size = -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE + _HUGE_PAGE
        self._map = mmap.mmap(-1, self._size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if _ADVICE_HUGE is not None:
            advise(self._map, _ADVICE_HUGE, 0, self._size)
        self._place = -torch.frombuffer(self._map, dtype=torch.uint8, count=1).data_ptr() % _HUGE_PAGE

    def has_room(self, nbytes: int) -> bool:
        return self._place + nbytes <= self._size

    def cut(self, nbytes: int) -> Span:
        """The next bytes."""
        start, stop = self._place, self._place + nbytes
        self._place = -(-stop // ALIGNMENT) * ALIGNMENT
        return Span(self._map, start, stop)
