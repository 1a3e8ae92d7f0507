"""A method's torch hooks as one layer holds them: plain functions, bound once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from qload.hookspecs import Layer


@dataclass(frozen=True, slots=True)
class Hooks:
    """The torch hooks of one method. `apply` is always there; the other optional ones may be None."""

    dequantize: Callable[[Layer], Tensor]
    apply: Callable[[Layer, Tensor, Tensor | None], Tensor]
    embedding: Callable[[Layer, Tensor], Tensor] | None
    apply_experts: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor] | None
    process: Callable[[nn.Module], None] | None


def bind(runtime: Mapping[str, Callable[..., Any]]) -> Hooks:
    """Pick a method's hooks; one without `qload_apply` computes with the dequantized weight."""
    dequantize = runtime["qload_dequantize"]
    return Hooks(
        dequantize,
        runtime.get("qload_apply", DequantizedApply(dequantize)),
        runtime.get("qload_embedding"),
        runtime.get("qload_apply_experts"),
        runtime.get("qload_process_weights_after_loading"),
    )


@dataclass(frozen=True, slots=True)
class DequantizedApply:
    """The way to compute that every method has: a dense weight, made anew for each call."""

    dequantize: Callable[[Layer], Tensor]

    def __call__(self, layer: Layer, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.dequantize(layer).to(x.dtype), bias)
