"""Linear layers: replicated, column-parallel, row-parallel, merged columns, and QKV."""

from collections.abc import Sequence

from torch import Tensor

from qload.errors import LayoutError
from qload.geometry import Geometry, Kind, Part, Sharding, column, row
from qload.plan import Source
from qload.quantization import Treatment
from qload.torch.dtypes import dtype_code
from qload.torch.layers.flow import Flow, Projection
from qload.torch.sites import Site


class Linear(Projection):
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
        flow: Flow = Flow(),  # noqa: B008
    ) -> None:
        sources = sources or fused_sources(site, parts)
        geometry = Geometry(in_features, tuple(parts), None, Kind.LINEAR, dtype_code(site.dtype), bias)
        treatment = treatment or site.treat(sources, Kind.LINEAR, ("Linear",))
        super().__init__(geometry, sources, site, treatment, sharding, flow)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """x [..., in_features] into [..., out_features]: this rank's, or all, as the flow has it; and the bias."""
        y = self.project(x)
        if not self.flow.return_bias:
            return y
        bias = self.own_tensor("bias") if self.flow.skip_bias_add else None
        return y, None if bias is None else self._hand_on(bias)

    @property
    def in_features(self) -> int:
        """This rank's input features."""
        return self.local.in_features

    @property
    def out_features(self) -> int:
        """This rank's output features."""
        return self.local.out_features


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
    """Attention's projections, fused; KV heads are replicated where there are fewer than ranks.

    Gradients of such a head's weight are to be summed over the ranks that hold it: each has that of its own use.
    """

    sharding = staticmethod(column)
    aliases = ("q", "k", "v")

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
