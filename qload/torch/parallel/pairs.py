"""What goes forward and what comes back between ranks, in pairs that are each other's gradient.

| | forward | backward |
|---|---|---|
| copy | nothing | sum |
| reduce | sum | nothing |
| scatter | this rank's share | gather |
| gather | gather | this rank's share |
| maximize | greatest | sum, on the rank that has it |

A loss is computed alike on every rank: a sum's gradient is that of each summand, and not summed again. What comes back
is computed by the other pair's way forward, and so has a gradient of its own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from qload.torch.parallel.groups import Group


class _Copy(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return reduce(gradients[0], ctx.group), None


class _Reduce(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return copy(gradients[0], ctx.group), None


class _Scatter(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return group.take(x, dim).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gather(gradients[0], ctx.group, ctx.dim), None, None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return group.gather(x, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return scatter(gradients[0], ctx.group, ctx.dim), None, None


class _Maximize(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        greatest = group.max(x)
        ctx.group = group
        ctx.save_for_backward(x == greatest)
        return greatest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (is_greatest,) = ctx.saved_tensors
        total, count = ctx.group.sum(torch.stack((gradients[0], is_greatest.to(gradients[0].dtype))))
        return (total / count).masked_fill(~is_greatest, 0), None


class _Forgetful:
    """In a context's place, where there will be no way back."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        pass


def copy(x: Tensor, group: Group) -> Tensor:
    """A view of x, whose gradient is the sum of all ranks'."""
    return x if group.size == 1 else _apply(_Copy, x, group)


def reduce(x: Tensor, group: Group) -> Tensor:
    """The sum of all ranks' x, whose gradient goes to each of them."""
    return x if group.size == 1 else _apply(_Reduce, x, group)


def scatter(x: Tensor, group: Group, dim: int = -1) -> Tensor:
    """This rank's share of x along `dim`, whose gradients are gathered.

    Raises ParallelError where it cannot be divided evenly.
    """
    return x if group.size == 1 else _apply(_Scatter, x, group, dim)


def gather(x: Tensor, group: Group, dim: int = -1) -> Tensor:
    """All ranks' x one after another along `dim`, of whose gradient each takes its share."""
    return x if group.size == 1 else _apply(_Gather, x, group, dim)


def maximize(x: Tensor, group: Group) -> Tensor:
    """The greatest of all ranks' x, element by element, whose gradients go, summed, to the rank that has it.

    Ranks that have the same one share them.
    """
    return x if group.size == 1 else _apply(_Maximize, x, group)


def _apply(function: type[Function], x: Tensor, *arguments: object) -> Tensor:
    if torch.is_grad_enabled():
        return function.apply(x, *arguments)  # type: ignore[no-any-return]
    # The compiler makes an instance of a function to trace it, of which torch warns.
    made: Tensor = function.forward(_Forgetful(), x, *arguments)
    return made.detach()
