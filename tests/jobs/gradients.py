"""Functions of what all ranks have alike, made of pairs; and the same functions of one process."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from qload.torch.parallel import Group, copy, gather, reduce, scatter

Function = Callable[[Tensor, Group], Tensor]


def weigh(x: Tensor, group: Group) -> Tensor:
    """Something that is another function on each rank."""
    return torch.sin(x * (group.rank + 1)) + group.rank


def start() -> Tensor:
    return torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)


RANKED: dict[str, Function] = {
    "copy, reduce": lambda x, group: reduce(weigh(copy(x, group), group), group),
    "copy twice": lambda x, group: reduce(weigh(copy(x, group), group) * copy(x, group).cos(), group),
    "copy used twice": lambda x, group: use_twice(copy(x, group), group),
    "copy, gather": lambda x, group: gather(weigh(copy(x, group), group), group),
    "copy, gather 0": lambda x, group: gather(weigh(copy(x, group), group), group, 0),
    "scatter, gather": lambda x, group: gather(weigh(scatter(x, group), group), group),
    "scatter, gather 0": lambda x, group: gather(weigh(scatter(x, group, 0), group), group, 0),
    "scatter, gather across": lambda x, group: gather(weigh(scatter(x, group, 0), group).sum(0), group, -1),
    "scatter, reduce": lambda x, group: reduce(weigh(scatter(x, group), group), group),
    "scatter 0, reduce": lambda x, group: reduce(weigh(scatter(x, group, -2), group), group),
    "transposed": lambda x, group: gather(weigh(scatter(x.t(), group), group).t(), group),
    "expanded": lambda x, group: reduce(weigh(copy(x[:1].expand(3, -1), group), group), group),
    "strided": lambda x, group: gather(weigh(copy(x[:, ::2], group), group)[::2], group, 0),
}
"""By name; each takes what all ranks have alike, and gives what all have alike."""


def use_twice(x: Tensor, group: Group) -> Tensor:
    return reduce(weigh(x, group) * x, group) + reduce(x.cos(), group)


def weigh_each(parts: list[Tensor]) -> list[Tensor]:
    return [weigh(part, Group(rank, len(parts))) for rank, part in enumerate(parts)]


def compute_alone(name: str, x: Tensor, size: int) -> Tensor:
    """What `size` ranks compute together, on one process and without any pair."""
    copies, columns, rows = [x] * size, list(x.chunk(size, -1)), list(x.chunk(size, 0))
    if name == "copy twice":
        return sum_all([each * x.cos() for each in weigh_each(copies)])
    if name == "copy used twice":
        return sum_all([each * x + x.cos() for each in weigh_each(copies)])
    if name == "transposed":
        return torch.cat([each.t() for each in weigh_each(list(x.t().chunk(size, -1)))], -1)
    if name == "expanded":
        return sum_all(weigh_each([x[:1].expand(3, -1)] * size))
    if name == "strided":
        return torch.cat([each[::2] for each in weigh_each([x[:, ::2]] * size)], 0)
    return {
        "copy, reduce": lambda: sum_all(weigh_each(copies)),
        "copy, gather": lambda: torch.cat(weigh_each(copies), -1),
        "copy, gather 0": lambda: torch.cat(weigh_each(copies), 0),
        "scatter, gather": lambda: torch.cat(weigh_each(columns), -1),
        "scatter, gather 0": lambda: torch.cat(weigh_each(rows), 0),
        "scatter, gather across": lambda: torch.cat([each.sum(0) for each in weigh_each(rows)], -1),
        "scatter, reduce": lambda: sum_all(weigh_each(columns)),
        "scatter 0, reduce": lambda: sum_all(weigh_each(rows)),
    }[name]()


def sum_all(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


def check_gradients(group: Group, name: str) -> tuple[Tensor, Tensor]:
    """What a function gives and its gradient, which agree with differences of it, and theirs with these."""
    torch.manual_seed(0)
    leaf = start().requires_grad_()

    def function(x: Tensor) -> Tensor:
        return RANKED[name](x, group)

    gradcheck(function, leaf)
    gradgradcheck(function, leaf, fast_mode=True)
    made = function(leaf)
    weight = torch.arange(made.numel(), dtype=torch.float64).reshape(made.shape)
    (gradient,) = torch.autograd.grad((made * weight).sum(), leaf)
    return made.detach(), gradient


def watch_gradients(group: Group, name: str) -> list[bool]:
    """Whether a pair leaves alone its input, the gradient that comes back, and a leaf that is no tensor of its own."""
    whole = start().requires_grad_()
    pair: Any = {"copy": copy, "reduce": reduce, "scatter": scatter, "gather": gather}[name]
    made = pair(whole[1:3], group)
    incoming = torch.ones_like(made) * 3
    made.backward(incoming)
    again = pair(whole[1:3], group)
    again.backward(incoming)
    return [
        torch.equal(incoming, torch.ones_like(made) * 3),
        torch.equal(whole.detach(), start()),
        whole.grad is not None and bool((whole.grad[[0, 3]] == 0).all()) and bool((whole.grad[1:3] != 0).all()),
        torch.equal(made, again),
    ]


def write_into(group: Group, name: str) -> str:
    """What comes of writing in place into what a pair made of something that needs a gradient."""
    whole = start().requires_grad_()
    pair: Any = {"copy": copy, "reduce": reduce, "scatter": scatter, "gather": gather}[name]
    try:
        pair(whole * 1, group).mul_(2)
    except RuntimeError as error:
        return str(error)
    return "written" if torch.equal(whole.detach(), start()) else "lost"


def compile_pair(group: Group, name: str) -> list[Tensor]:
    """What a function with a pair gives and its gradient, as it is and compiled without a break in its graph."""
    torch._dynamo.reset()
    compiled = torch.compile(RANKED[name], fullgraph=True, backend="aot_eager")
    found = []
    for function in (RANKED[name], compiled):
        leaf = start().requires_grad_()
        with warnings.catch_warnings():
            # Tracing an autograd function makes an instance of it, which torch itself warns of.
            warnings.simplefilter("ignore", DeprecationWarning)
            made = function(leaf, group)
        (gradient,) = torch.autograd.grad((made * made).sum(), leaf)
        found += [made.detach(), gradient]
    return found
