"""Linear layers divided over real ranks: what they give, and what gradients they leave."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qload import Registry
from qload.quantization import unquantized
from qload.torch import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
)
from qload.torch.layers.linear import Linear
from qload.torch.parallel import Group

MAKERS: dict[str, Callable[..., Linear]] = {
    "replicated": ReplicatedLinear,
    "column": ColumnParallelLinear,
    "row": RowParallelLinear,
    "merged": MergedColumnParallelLinear,
    "qkv": QKVParallelLinear,
    "any": Linear,
}


@dataclass(frozen=True)
class Case:
    """A layer by its class and arguments, the whole weight and bias, and for each rank what it is to have of them.

    `rows` and `columns` are those of the weight, `entries` those of the bias, `inputs` and `outputs` the features that
    a rank is handed and hands on; `pull` weighs its outputs in the loss.
    """

    kind: str
    sizes: tuple[Any, ...]
    options: dict[str, Any]
    weight: Tensor
    bias: Tensor
    x: Tensor
    rows: list[Tensor]
    columns: list[Tensor]
    entries: list[Tensor]
    inputs: list[Tensor]
    outputs: list[Tensor]
    pull: list[Tensor]
    flags: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A rank's output and the bias beside it, if there is one, and the gradients of its input, weight and bias."""

    y: Tensor
    beside: Tensor | None
    x: Tensor
    weight: Tensor
    bias: Tensor | None


def compute(group: Group, cases: list[Case]) -> list[Result]:
    return [_compute(group, case) for case in cases]


def _compute(group: Group, case: Case) -> Result:
    site = Site(unquantized(Registry.discover()), "layer", group, torch.float64)
    layer = MAKERS[case.kind](*case.sizes, site, **case.options)
    rank = group.rank
    layer.set_tensor("weight", case.weight[case.rows[rank]][:, case.columns[rank]])
    if case.options.get("bias"):
        layer.set_tensor("bias", case.bias[case.entries[rank]])
    layer.requires_grad_()
    x = case.x[..., case.inputs[rank]].requires_grad_()
    made = layer(x)
    y, beside = made if case.flags.get("return_bias") else (made, None)
    total = y if beside is None else y + beside
    (total * case.pull[rank]).sum().backward()
    bias: Any = getattr(layer, "bias", None)
    return Result(y.detach(), _detach(beside), _grad(x), _grad(layer.weight), None if bias is None else _grad(bias))


def _detach(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _grad(tensor: Any) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
