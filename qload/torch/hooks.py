"""A method's torch hooks as one layer holds them: plain functions, bound once, and proven once by a load."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qload.answers import AnswerError
from qload.calls import call
from qload.geometry import Geometry, Kind
from qload.hookspecs import LayerPiece
from qload.registry import Runtime
from qload.torch.activations import keep
from qload.torch.dtypes import torch_dtype

_HEAD_SIZE = 128
"""Of the heads with which a cache's hook proves itself."""
_OWN_HOOKS = (Kind.EMBEDDING, Kind.KV_CACHE)
"""Kinds of layers that compute with hooks of their own."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """The torch hooks of one method. `apply` and `process` are always there; the other optional ones may be None.

    Copies share them, and a pickle finds them again through the method.
    """

    runtime: Runtime
    dequantize: Callable[[LayerPiece], Tensor]
    apply: Callable[[LayerPiece, Tensor, Tensor | None], Tensor]
    embedding: Callable[[LayerPiece, Tensor], Tensor] | None
    apply_experts: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor] | None
    cache: Callable[[LayerPiece, Tensor, Tensor], tuple[Tensor, Tensor]] | None
    process: Callable[[nn.Module], None]

    def __deepcopy__(self, memo: object) -> "Hooks":
        return self

    def __reduce__(self) -> tuple[Callable[..., "Hooks"], tuple[Runtime]]:
        return bind, (self.runtime,)


def bind(runtime: Runtime) -> Hooks:
    """Pick a method's hooks; one without `qload_apply` computes with the dequantized weight."""
    dequantize = runtime["qload_dequantize"]
    return Hooks(
        runtime,
        dequantize,
        runtime.get("qload_apply", DequantizedApply(dequantize)),
        runtime.get("qload_embedding"),
        runtime.get("qload_apply_experts"),
        runtime.get("qload_cache"),
        Completion(runtime),
    )


@dataclass(frozen=True, slots=True)
class DequantizedApply:
    """The way to compute that every method has: a dense weight, made anew for each call."""

    dequantize: Callable[[LayerPiece], Tensor]

    def __call__(self, layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.dequantize(layer).to(x.dtype), bias)


class LoadedLayer(Protocol):
    """What the completion of a load needs of a layer."""

    name: str
    local: Geometry
    scheme: Any

    def parameters(self) -> Iterator[Tensor]: ...

    def sample(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Completion:
    """What runs once a layer's last copy has landed: the method's own hook; then its other hooks prove themselves.

    The proof is a value of the right shape and dtype, for some rows of one layer of each scheme, and one embedding:
    hot calls then go without a check. Raises PluginError where a hook raises, or answers with something else.
    """

    runtime: Runtime

    def __call__(self, layer: Any) -> None:
        process = self.runtime.get("qload_process_weights_after_loading")
        if process is not None:
            name = "qload_process_weights_after_loading"
            call(self.runtime.method.origin, name, process, layer, where=layer.name)
        kind = (layer.scheme, layer.local.kind if layer.local.kind in _OWN_HOOKS else None)
        if kind not in self.runtime.proven and _can_compute(layer.local):
            with torch.no_grad():
                self._prove(layer)
            self.runtime.proven.add(kind)

    def _prove(self, layer: LoadedLayer) -> None:
        piece = layer.sample()
        # Other ranks prove their hooks when they come to it.
        piece.agree = keep
        device = next((tensor.device for tensor in layer.parameters()), torch.device("cpu"))
        if layer.local.kind is Kind.KV_CACHE:
            states = torch.ones(1, piece.out_features, 1, _HEAD_SIZE, device=device)
            self._prove_hook("qload_cache", layer, piece, states, states, wanted=tuple(states.shape), count=2)
            return
        if layer.local.kind is Kind.EMBEDDING:
            # A row shows enough. All of them made dense would be the greatest tensor of many a model.
            ids = torch.zeros(1, dtype=torch.int64, device=device)
            self._prove_hook("qload_embedding", layer, piece, ids, wanted=(1, piece.in_features))
            return
        self._prove_hook("qload_dequantize", layer, piece, wanted=(piece.out_features, piece.in_features))
        x = torch.ones(1, piece.in_features, dtype=torch_dtype(layer.local.dtype), device=device)
        self._prove_hook("qload_apply", layer, piece, x, None, wanted=(1, piece.out_features), dtype=x.dtype)

    def _prove_hook(
        self,
        name: str,
        layer: LoadedLayer,
        *arguments: Any,
        wanted: tuple[int, ...],
        dtype: torch.dtype | None = None,
        count: int = 1,
    ) -> None:
        hook = self.runtime.get(name)
        if hook is not None:
            origin, read = self.runtime.method.origin, TensorReader(wanted, dtype, count)
            call(origin, name, hook, *arguments, where=layer.name, read=read, meant=(torch.OutOfMemoryError,))


@dataclass(frozen=True, slots=True)
class TensorReader:
    """Takes a tensor of floats with that shape for an answer, or a tuple of `count`; of that dtype, if one is given."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    count: int = 1

    def __call__(self, answer: object) -> object:
        if self.count == 1:
            return self._check(answer)
        if not isinstance(answer, tuple) or len(answer) != self.count:
            raise AnswerError(f"returns {type(answer).__name__}, not a tuple of {self.count} tensors")
        return tuple(map(self._check, answer))

    def _check(self, answer: object) -> Tensor:
        if not isinstance(answer, Tensor):
            raise AnswerError(f"returns {type(answer).__name__}, not a tensor")
        if tuple(answer.shape) != self.shape:
            raise AnswerError(f"returns the shape {list(answer.shape)}, not {list(self.shape)}")
        if not answer.is_floating_point() or answer.itemsize == 1 or self.dtype not in (None, answer.dtype):
            raise AnswerError(f"returns {answer.dtype}, not {self.dtype or 'floats'}")
        return answer


def _can_compute(local: Geometry) -> bool:
    """Whether there is something to compute: a rank may hold no rows."""
    return all((local.out_features, local.in_features, 1 if local.experts is None else local.experts))
