"""What goes into a layer and comes out of it over ranks, and the collectives that bring it there."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from qload.geometry import Geometry, Sharding, column
from qload.layout import Dim, Interval
from qload.plan import Source
from qload.quantization import Treatment
from qload.sharding import order_gathered
from qload.torch.layers.base import Layer
from qload.torch.parallel import copy, gather, reduce, scatter
from qload.torch.pieces import pick_expert
from qload.torch.sites import Site


@dataclass(frozen=True, slots=True)
class Flow:
    """What a layer is handed and hands on: divided over the ranks by features, or whole on each; and what of its bias.

    With `skip_bias_add` the bias is left to the caller, who gets it beside the output with `return_bias`.
    """

    input_is_parallel: bool = False
    gather_output: bool = True
    skip_bias_add: bool = False
    return_bias: bool = False


class Projection(Layer):
    """A layer of which x and y are divided over ranks as its `flow` has it, however its weight is."""

    def __init__(
        self,
        geometry: Geometry,
        sources: Sequence[Source],
        site: Site,
        treatment: Treatment,
        sharding: Sharding | None = None,
        flow: Flow = Flow(),
    ) -> None:
        super().__init__(geometry, sources, site, treatment, sharding)
        self.set_flow(flow)

    def settle_share(self) -> None:
        super().settle_share()
        self._order = self._order_outputs()

    def set_flow(self, flow: Flow) -> None:
        """Change what the layer is handed and hands on. Raises ShardError where outputs cannot be divided so."""
        self.flow = flow
        self._order = self._order_outputs()

    def project(self, x: Tensor, expert: int | Tensor | None = None) -> Tensor:
        """x [..., in_features] into [..., out_features], each of this rank or whole as the flow has it."""
        if Dim.IN not in self.divided:
            biased = not self.flow.skip_bias_add
            return self._hand_on(self.compute(self._bring(x), expert, biased=biased))
        y = reduce(self.compute(self._bring(x), expert, biased=False), self.group)
        bias = None if self.flow.skip_bias_add else self.own_tensor("bias")
        return self._hand_on(y if bias is None else y + pick_expert(bias, expert))

    def _bring(self, x: Tensor) -> Tensor:
        """The input features that this rank's share of the weight has."""
        if Dim.IN in self.divided:
            return x if self.flow.input_is_parallel else scatter(x, self.group)
        whole = gather(x, self.group) if self.flow.input_is_parallel else x
        return copy(whole, self.group) if Dim.OUT in self.divided else whole

    def _hand_on(self, y: Tensor) -> Tensor:
        """The output features that this rank is to have, of those that it computed."""
        if self._order is None:
            return y
        y = gather(y, self.group) if self.flow.gather_output else copy(y, self.group)
        return take_runs(y, self._order)

    def _order_outputs(self) -> tuple[Interval, ...] | None:
        """Which features are handed on, of those that are there once gathered, or without it; None for all of them."""
        if self.group.size == 1 or self.flow.gather_output is not (Dim.OUT in self.divided):
            return None
        if self.flow.gather_output:
            return order_gathered(self.shards)
        own = column(self.geometry, self.group.rank, self.group.size).out
        starts = accumulate((part.size for part in self.geometry.parts), initial=0)
        return tuple(Interval(at + cut.start, at + cut.stop) for at, cut in zip(starts, own, strict=False))


def take_runs(x: Tensor, runs: Sequence[Interval]) -> Tensor:
    """Those of the last dimension, one after another."""
    if len(runs) == 1 and runs[0].size == x.shape[-1]:
        return x
    return torch.cat([x[..., run.slice] for run in runs], -1)
