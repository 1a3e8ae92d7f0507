"""What the layers of a vocabulary share: rows of tokens, some of them added later, of which ranks have their own."""

from collections.abc import Set
from dataclasses import replace

import torch
from torch import Tensor

from qload.errors import ModelError
from qload.geometry import Kind, Shard, Sharding, index_tokens, make_vocabulary, vocabulary
from qload.layout import Cut, Dim
from qload.plan import Source
from qload.quantization import Treatment
from qload.sharding import match_share
from qload.torch.dtypes import dtype_code
from qload.torch.layers.base import Layer
from qload.torch.sites import Site


def base_rows(prefix: str) -> Source:
    """A module of the checkpoint that stores the base vocabulary alone."""
    return Source(prefix)


def added_rows(prefix: str) -> Source:
    """A module of the checkpoint that stores the added tokens alone."""
    return Source(prefix, 1)


def all_rows(prefix: str) -> Source:
    """A module of the checkpoint that stores the added tokens after the base vocabulary."""
    return Source(prefix, 0, 2)


class VocabularyLayer(Layer):
    """A layer of `vocabulary_size` tokens, the last `added` of which were added to the base vocabulary.

    What `sources` says is read by the next load: a part of the vocabulary that no source stores keeps its rows, or is
    zero. `index` says which tokens' rows this rank has.
    """

    kind = Kind.EMBEDDING
    class_name = "Embedding"

    def __init__(
        self,
        rows: int,
        features: int,
        site: Site,
        *,
        added: int = 0,
        bias: bool = False,
        source: Source | None = None,
        treatment: Treatment | None = None,
        sharding: Sharding = vocabulary(),  # noqa: B008
    ) -> None:
        dtype = dtype_code(site.dtype)
        geometry = make_vocabulary(rows, features, added=added, kind=self.kind, dtype=dtype, bias=bias)
        source = source or base_rows(site.name)
        treatment = treatment or site.treat((source,), self.kind, (self.class_name,))
        super().__init__(geometry, (source,), site, treatment, sharding)
        self.vocabulary_size = geometry.out_features
        self.settle_share()

    def settle_share(self) -> None:
        super().settle_share()
        self.index = index_tokens(self.geometry, self.shard)

    @property
    def loaded_shard(self) -> Shard:
        """This rank's share of what the sources store; of a part that none of them does, padding stands there."""
        cuts = enumerate(self.shard.out)
        out = tuple(Cut(cut.start, cut.start, cut.padded_size) if part in self._kept else cut for part, cut in cuts)
        return replace(self.shard, out=out)

    def prepare(self, present: Set[str]) -> None:
        """Make ready for a load that fills the tensors of the names `present`.

        Raises ModelError where rows that are to be kept cannot be put together with those.
        """
        if not self._kept or all(tensor.is_meta for tensor in self.parameters()):
            super().prepare(present)
            return
        there = {name for name in self.declared if getattr(self, name) is not None}
        if self.derived or there - {"bias"} != present - {"bias"}:
            raise ModelError(
                "rows that are loaded cannot be put beside those that are there, which are stored otherwise",
                where=self.name,
                expected=", ".join(sorted(present)),
                found=", ".join(sorted(there | self.derived.keys())),
                remedy="load the whole vocabulary at once",
            )

    def complete(self, name: str, tensor: Tensor) -> None:
        """Add to a tensor that a load has filled the rows that are there, and that it does not have.

        Raises ModelError where both have not the same dtype, or share something that differs.
        """
        old, spec = getattr(self, name), self.declared[name]
        if not self._kept or old is None or old.is_meta:
            return
        shared = not (spec.layout.follows(Dim.OUT) or spec.layout.follows(Dim.PART))
        if old.dtype != tensor.dtype or old.shape != tensor.shape or (shared and not torch.equal(old, tensor)):
            raise ModelError(
                "rows that are loaded cannot be put beside those that are there",
                where=f"{self.name}.{name}",
                expected="the same values" if shared else f"{old.dtype} {list(old.shape)}",
                found="others" if shared else f"{tensor.dtype} {list(tensor.shape)}",
                remedy="load the whole vocabulary at once",
            )
        owned = [goal for _, goal in match_share(spec.layout, self.geometry, self.shard)]
        for part in self._kept:
            region = tuple(interval.slice for interval in owned[part])
            tensor[region].copy_(old[region])

    @property
    def _kept(self) -> frozenset[int]:
        """The parts that no source stores."""
        stored = {part for source in self.sources for part in range(source.part, source.part + source.parts)}
        return frozenset(range(len(self.geometry.parts))) - stored
