"""Linear layers: replicated, column-parallel, row-parallel, merged columns, and QKV."""

from collections.abc import Sequence

from torch import Tensor

from qload.errors import LayoutError
from qload.geometry import Geometry, Kind, Part, Sharding, column, replicated, row
from qload.plan import Source
from qload.quantization import Treatment
from qload.torch.dtypes import dtype_code
from qload.torch.layers.base import Layer
from qload.torch.sites import Site


class Linear(Layer):
    """y = x W^T + b with this rank's share of W: the base of the linear layers.

    A layer of several `parts` fuses modules of the checkpoint that are siblings of the site's name, or the
    `sources` that are given. `treatment` says what is done to them where the config is not to be asked.
    """

    sharding: Sharding = staticmethod(replicated)
    """How the layer is divided over ranks."""

    def __init__(
        self,
        in_features: int,
        parts: Sequence[Part],
        site: Site,
        *,
        bias: bool = False,
        sources: Sequence[Source] = (),
        treatment: Treatment | None = None,
    ) -> None:
        sources = sources or fused_sources(site, parts)
        geometry = Geometry(in_features, tuple(parts), None, Kind.LINEAR, dtype_code(site.dtype), bias)
        treatment = treatment or site.treat(sources, Kind.LINEAR, ("Linear",))
        super().__init__(geometry, sources, site, treatment, self.sharding)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] of this rank into [..., out_features] of this rank."""
        return self.compute(x)

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
        source: Source | None = None,
        treatment: Treatment | None = None,
    ) -> None:
        sources = (source,) if source is not None else ()
        parts = (Part("", out_features),)
        super().__init__(in_features, parts, site, bias=bias, sources=sources, treatment=treatment)


class ColumnParallelLinear(ReplicatedLinear):
    """A linear layer whose output features are divided over the ranks."""

    sharding = staticmethod(column)


class RowParallelLinear(ReplicatedLinear):
    """A linear layer whose input features are divided; the ranks' outputs are summed to the whole."""

    sharding = staticmethod(row)


class MergedColumnParallelLinear(Linear):
    """Column-parallel layers with one input, fused: `parts` gives each one's name and output features."""

    sharding = staticmethod(column)

    def __init__(self, in_features: int, parts: Sequence[tuple[str, int]], site: Site, *, bias: bool = False) -> None:
        super().__init__(in_features, [Part(name, count) for name, count in parts], site, bias=bias)


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
        names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj"),
    ) -> None:
        query, key, value = names
        parts = [
            Part(query, heads * head_size, heads),
            Part(key, kv_heads * head_size, kv_heads, replicable=True),
            Part(value, kv_heads * head_size, kv_heads, replicable=True),
        ]
        super().__init__(in_features, parts, site, bias=bias)


def fused_sources(site: Site, parts: Sequence[Part]) -> tuple[Source, ...]:
    """The modules that fill a layer: itself, or its parts' names in its own name's place.

    Raises LayoutError for a fused part without a name.
    """
    if len(parts) == 1 and not parts[0].name:
        return (Source(site.name),)
    if not all(part.name for part in parts):
        raise LayoutError("the parts of a fused layer need names", where=site.name)
    return tuple(Source(site.parent.at(part.name).name, number) for number, part in enumerate(parts))
