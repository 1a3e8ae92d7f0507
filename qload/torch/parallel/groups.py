"""The ranks among which layers are divided, and what they can do together: sum, take maxima, gather.

Nothing is ever written in place: neither what is handed in, nor a gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from qload.errors import ParallelError
from qload.geometry import check_rank


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Rank `rank` of `size` ranks. Without a `handle` it can say whose shard a layer is, and not compute with others.

    Copies share the handle; a pickle leaves it out, for another process has none like it. Raises LayoutError for a
    rank that `size` does not have.
    """

    rank: int = 0
    size: int = 1
    handle: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        check_rank(self.rank, self.size)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, on every rank."""
        return self._reduce(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """The greatest of every rank's x, element by element, on every rank."""
        return self._reduce(x, dist.ReduceOp.MAX)

    def broadcast(self, x: Tensor) -> Tensor:
        """The first rank's x, on every rank. All have the same shape."""
        if self.size == 1:
            return x
        received = x.clone(memory_format=torch.contiguous_format)
        self.communicate(lambda handle: dist.broadcast(received, group=handle, group_src=0))
        return received

    def gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """Every rank's x, one after another along `dim`, on every rank. All have the same shape."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        self.communicate(lambda handle: dist.all_gather(parts, x.contiguous(), group=handle))
        return torch.cat(parts, dim)

    def take(self, x: Tensor, dim: int = -1) -> Tensor:
        """This rank's share of x, which is divided evenly along `dim`. Raises ParallelError where it cannot be."""
        if x.shape[dim] % self.size:
            raise ParallelError(
                "a tensor cannot be divided evenly over the ranks",
                where=f"dimension {dim} of {list(x.shape)}",
                expected=f"a multiple of {self.size}",
                found=str(x.shape[dim]),
            )
        share = x.shape[dim] // self.size
        return x.narrow(dim, self.rank * share, share)

    def communicate(self, call: Callable[[dist.ProcessGroup], object]) -> None:
        """Hand the process group to `call`, whose collective every rank calls.

        Raises ParallelError where there is none, or where the call fails, as it does when another rank is gone.
        """
        if self.handle is None:
            raise ParallelError(
                "the ranks have no process group",
                where=f"rank {self.rank} of {self.size}",
                remedy="make the group from a device mesh: qload.torch.parallel.group_of(mesh)",
            )
        try:
            call(self.handle)
        except RuntimeError as error:
            raise ParallelError(
                "another rank is gone, or did something else at the same time",
                where=f"rank {self.rank} of {self.size}",
                found=next(iter(str(error).splitlines()), type(error).__name__),
                remedy="look at what the other ranks say",
            ) from error

    def _reduce(self, x: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return x
        reduced = x.clone(memory_format=torch.contiguous_format)
        self.communicate(lambda handle: dist.all_reduce(reduced, op=operation, group=handle))
        return reduced

    def __deepcopy__(self, memo: object) -> "Group":
        return self

    def __reduce__(self) -> tuple[type["Group"], tuple[int, int]]:
        return Group, (self.rank, self.size)
