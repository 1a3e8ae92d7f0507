"""Linear layers: replicated, column-parallel, row-parallel, merged columns, and QKV."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qload.errors import LayoutError
from qload.geometry import Geometry, Kind, Part, Sharding, column, row
from qload.layout import Dim, Interval
from qload.plan import Source
from qload.quantization import Treatment
from qload.sharding import order_gathered
from qload.torch.dtypes import dtype_code
from qload.torch.layers.base import Layer
from qload.torch.parallel import copy, gather, reduce, scatter
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


class Linear(Layer):
    """y = x W^T + b with this rank's share of W: the base of the linear layers.

    A layer of several `parts` fuses modules of the checkpoint that are siblings of the site's name, or the
    `sources` that are given. `treatment` says what is done to them where the config is not to be asked. `sharding`
    says how W is divided, and `flow` what of x and y each rank has: whatever of them is not so is brought there.
    """

    def __init__(
        self,
        in_features: int,
        parts: Sequence[Part],
        site: Site,
        *,
        bias: bool = False,
        sources: Sequence[Source] = (),
        treatment: Treatment | None = None,
        sharding: Sharding | None = None,
        flow: Flow = Flow(),
    ) -> None:
        sources = sources or fused_sources(site, parts)
        geometry = Geometry(in_features, tuple(parts), None, Kind.LINEAR, dtype_code(site.dtype), bias)
        treatment = treatment or site.treat(sources, Kind.LINEAR, ("Linear",))
        super().__init__(geometry, sources, site, treatment, sharding)
        self.flow = flow
        self.settle_share()

    def settle_share(self) -> None:
        super().settle_share()
        self._order = _order_outputs(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """x [..., in_features] into [..., out_features]: this rank's, or all, as the flow has it; and the bias."""
        bias, skips = self.own_tensor("bias"), self.flow.skip_bias_add
        sums = Dim.IN in self.divided
        y = self.compute(self._bring(x), biased=not (sums or skips))
        if sums:
            y = reduce(y, self.group)
            y = y if bias is None or skips else y + bias
        y = self._hand_on(y)
        if not self.flow.return_bias:
            return y
        return y, self._hand_on(bias) if skips and bias is not None else None

    @property
    def in_features(self) -> int:
        """This rank's input features."""
        return self.local.in_features

    @property
    def out_features(self) -> int:
        """This rank's output features."""
        return self.local.out_features

    def _bring(self, x: Tensor) -> Tensor:
        """The input features that this rank's share of the weight has."""
        if Dim.IN in self.divided:
            return x if self.flow.input_is_parallel else scatter(x, self.group)
        return copy(gather(x, self.group) if self.flow.input_is_parallel else x, self.group)

    def _hand_on(self, y: Tensor) -> Tensor:
        """The output features that this rank is to have, of those that it computed."""
        if self._order is None:
            return y
        y = gather(y, self.group) if self.flow.gather_output else copy(y, self.group)
        return take_runs(y, self._order)


def _order_outputs(layer: Linear) -> tuple[Interval, ...] | None:
    """Which of the features that are there after gathering, or without it, are handed on; None for those computed."""
    geometry, group = layer.geometry, layer.group
    if group.size == 1 or layer.flow.gather_output is not (Dim.OUT in layer.divided):
        return None
    if layer.flow.gather_output:
        return order_gathered(layer.shards)
    own = column(geometry, group.rank, group.size).out
    starts = [sum(part.size for part in geometry.parts[:number]) for number in range(len(own))]
    return tuple(Interval(at + cut.start, at + cut.stop) for at, cut in zip(starts, own, strict=True))


def take_runs(x: Tensor, runs: Sequence[Interval]) -> Tensor:
    """Those of the last dimension, one after another."""
    if len(runs) == 1 and runs[0].size == x.shape[-1]:
        return x
    return torch.cat([x[..., run.slice] for run in runs], -1)


class ReplicatedLinear(Linear):
    """A linear layer that every rank holds whole."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        site: Site,
        *,
        bias: bool = False,
        skip_bias_add: bool = False,
        return_bias: bool = False,
        source: Source | None = None,
        treatment: Treatment | None = None,
    ) -> None:
        flow = Flow(skip_bias_add=skip_bias_add, return_bias=return_bias)
        sources = (source,) if source is not None else ()
        parts = (Part("", out_features),)
        super().__init__(in_features, parts, site, bias=bias, flow=flow, sources=sources, treatment=treatment)


class ColumnParallelLinear(Linear):
    """A linear layer whose output features are divided over the ranks; with `gather_output`, each gets all."""

    sharding = staticmethod(column)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        site: Site,
        *,
        bias: bool = False,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        return_bias: bool = False,
        source: Source | None = None,
        treatment: Treatment | None = None,
    ) -> None:
        flow = Flow(gather_output=gather_output, skip_bias_add=skip_bias_add, return_bias=return_bias)
        sources = (source,) if source is not None else ()
        parts = (Part("", out_features),)
        super().__init__(in_features, parts, site, bias=bias, flow=flow, sources=sources, treatment=treatment)


class RowParallelLinear(Linear):
    """A linear layer whose input features are divided over the ranks, whose outputs are summed.

    Without `input_is_parallel` each rank is handed all input features, and takes its own.
    """

    sharding = staticmethod(row)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        site: Site,
        *,
        bias: bool = False,
        input_is_parallel: bool = True,
        skip_bias_add: bool = False,
        return_bias: bool = False,
        source: Source | None = None,
        treatment: Treatment | None = None,
    ) -> None:
        flow = Flow(input_is_parallel, skip_bias_add=skip_bias_add, return_bias=return_bias)
        sources = (source,) if source is not None else ()
        parts = (Part("", out_features),)
        super().__init__(in_features, parts, site, bias=bias, flow=flow, sources=sources, treatment=treatment)


class MergedColumnParallelLinear(Linear):
    """Column-parallel layers with one input, fused: `parts` gives each one's name and output features."""

    sharding = staticmethod(column)

    def __init__(
        self,
        in_features: int,
        parts: Sequence[tuple[str, int]],
        site: Site,
        *,
        bias: bool = False,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        return_bias: bool = False,
    ) -> None:
        flow = Flow(gather_output=gather_output, skip_bias_add=skip_bias_add, return_bias=return_bias)
        super().__init__(in_features, [Part(name, count) for name, count in parts], site, bias=bias, flow=flow)


class QKVParallelLinear(Linear):
    """Attention's projections, fused; KV heads are replicated where there are fewer than ranks."""

    sharding = staticmethod(column)

    def __init__(
        self,
        in_features: int,
        head_size: int,
        heads: int,
        kv_heads: int,
        site: Site,
        *,
        bias: bool = False,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        return_bias: bool = False,
        names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj"),
    ) -> None:
        query, key, value = names
        parts = [
            Part(query, heads * head_size, heads),
            Part(key, kv_heads * head_size, kv_heads, replicable=True),
            Part(value, kv_heads * head_size, kv_heads, replicable=True),
        ]
        flow = Flow(gather_output=gather_output, skip_bias_add=skip_bias_add, return_bias=return_bias)
        super().__init__(in_features, parts, site, bias=bias, flow=flow)

    @property
    def kv_replicas(self) -> int:
        """How many ranks have the same keys and values."""
        return max(1, self.group.size // (self.geometry.parts[1].heads or 1))


def fused_sources(site: Site, parts: Sequence[Part]) -> tuple[Source, ...]:
    """The modules that fill a layer: itself, or its parts' names in its own name's place.

    Raises LayoutError for a fused part without a name.
    """
    if len(parts) == 1 and not parts[0].name:
        return (Source(site.name),)
    if not all(part.name for part in parts):
        raise LayoutError("the parts of a fused layer need names", where=site.name)
    return tuple(Source(site.parent.at(part.name).name, number) for number, part in enumerate(parts))
