"""Packs layers for their kernels in threads, while the caller goes on with the next ones."""

import functools
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from qload.torch.kernels import Table
from qload.torch.layers import Layer
from qload.torch.memory import Arena

PENDING_BYTES = 48 << 20
"""Of stored tensors that wait to be packed, or are: both forms of a layer are there meanwhile. One layer is enough."""
_MOST_THREADS = 8


class Packers:
    """Gives layers their kernels, several at a time on a CPU, where each operator is then left with one core.

    On other devices, whose work is in a queue of its own, and on one core, layers are packed by whoever asks.
    """

    def __init__(self, kernels: Table, arena: Arena) -> None:
        self._kernels = kernels
        self._make = functools.partial(arena.take, zeros=False)
        self._infers = torch.is_inference_mode_enabled()
        self._pending = deque[tuple[Future[None], int]]()
        self._nbytes = 0
        cores = torch.get_num_threads()
        count = min(_MOST_THREADS, cores) if arena.device.type == "cpu" and kernels.kernels else 1
        self._pool = ThreadPoolExecutor(count, "qload-pack", _use_one_core, (cores,)) if count > 1 else None

    def pack(self, layer: Layer) -> None:
        """Pack a layer that is loaded, or have it packed. Raises what an earlier one raised."""
        if self._pool is None or layer.scheme is None:
            # Nothing of a layer that is not quantized is packed.
            layer.pack(self._kernels, self._make)
            return
        nbytes = sum(each.nbytes for each in layer.parameters())
        while self._pending and self._nbytes + nbytes > PENDING_BYTES:
            self._await_first()
        self._pending.append((self._pool.submit(self._run, layer), nbytes))
        self._nbytes += nbytes

    def finish(self) -> None:
        """Wait for all. Raises what one of them raised."""
        while self._pending:
            self._await_first()

    def close(self) -> None:
        """Begin nothing more, and wait for what is under way."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _await_first(self) -> None:
        future, nbytes = self._pending.popleft()
        self._nbytes -= nbytes
        future.result()

    def _run(self, layer: Layer) -> None:
        with torch.inference_mode(self._infers):
            layer.pack(self._kernels, self._make)


def _use_one_core(cores: int) -> None:
    """Leave one core to this thread's operators, and to those of threads that begin later as many as before."""
    torch.get_num_threads()  # asked for the first time, it would be set anew
    torch.set_num_threads(1)
    # New threads begin with what was set last, in whatever thread.
    other = threading.Thread(target=torch.set_num_threads, args=(cores,))
    other.start()
    other.join()
