"""A layer's whole logical shape, and the share of it that one rank owns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from qload.errors import LayoutError, ShardError
from qload.layout import Cut, Dim, Extent, Extents

MAX_SIZE = 64
"""The greatest tensor-parallel size that is tried for an error's list of sizes."""


class Kind(StrEnum):
    """What a layer does, which decides the hooks that it needs."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    LM_HEAD = "lm_head"
    EXPERTS = "experts"
    KV_CACHE = "kv_cache"


@dataclass(frozen=True, slots=True)
class Part:
    """One of a layer's fused parts: `size` output features, in `heads` heads that stay together.

    `heads=None` cuts anywhere. A `replicable` part of fewer heads than ranks gives several ranks the same head.
    Raises LayoutError where the heads do not divide the size.
    """

    name: str
    size: int
    heads: int | None = None
    replicable: bool = False

    def __post_init__(self) -> None:
        if self.size < 0 or (self.heads is not None and (self.heads < 1 or self.size % self.heads)):
            raise LayoutError(
                "a part is not made of whole heads",
                where=self.name,
                expected="a size that the number of heads divides",
                found=f"size {self.size}, {self.heads} heads",
            )


@dataclass(frozen=True, slots=True)
class Geometry:
    """A whole layer, before it is cut: output features by part, input features, experts.

    `dtype` is the code of the dtype that the layer computes in. `interleaved` parts alternate row by
    row. `experts` is None for a layer that is not a stack of experts.
    """

    in_features: int
    parts: tuple[Part, ...]
    experts: int | None = None
    kind: Kind = Kind.LINEAR
    dtype: str = "F32"
    bias: bool = False
    interleaved: bool = False

    @property
    def out_features(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def extents(self) -> Extents:
        """The segments of every dimension."""
        return {
            Dim.OUT: Extent(tuple([part.size for part in self.parts]), self.interleaved),
            Dim.IN: Extent((self.in_features,)),
            Dim.EXPERT: Extent((self.experts if self.experts is not None else 1,)),
            Dim.PART: Extent((1,) * len(self.parts)),
        }

    def select(self, number: int) -> "Geometry":
        """The layer that is one part of this one, of one expert."""
        return replace(self, parts=(self.parts[number],), experts=None, interleaved=False)


def single(
    out_features: int,
    in_features: int,
    *,
    kind: Kind = Kind.LINEAR,
    dtype: str = "F32",
    bias: bool = False,
    experts: int | None = None,
) -> Geometry:
    """A layer of one part."""
    return Geometry(in_features, (Part("", out_features),), experts, kind, dtype, bias)


@dataclass(frozen=True, slots=True)
class Shard:
    """The logical intervals of one layer that rank `rank` of `size` owns.

    `out` has a cut for each part, in the part's own rows. Raises LayoutError for a rank that `size` does not have.
    """

    rank: int
    size: int
    out: tuple[Cut, ...]
    in_: Cut
    experts: Cut = field(default=Cut(0, 1))

    def __post_init__(self) -> None:
        check_rank(self.rank, self.size)

    def cuts(self, part: int) -> Mapping[Dim, Cut]:
        """The cut of every dimension for the part with that index; experts are cut by the caller."""
        return {Dim.OUT: self.out[part], Dim.IN: self.in_}

    def without_padding(self) -> "Shard":
        return replace(self, out=tuple(Cut(cut.start, cut.stop) for cut in self.out))

    def local(self, geometry: Geometry) -> Geometry:
        """The layer as this rank holds it, padding included."""
        parts = tuple(Part(part.name, cut.padded_size) for part, cut in zip(geometry.parts, self.out, strict=True))
        experts = None if geometry.experts is None else self.experts.size
        return replace(geometry, parts=parts, in_features=self.in_.size, experts=experts)


Sharding = Callable[[Geometry, int, int], Shard]
"""(geometry, rank, size) -> the shard of that rank."""


def check_rank(rank: int, size: int) -> None:
    """Raises LayoutError unless `rank` is one of `size` ranks."""
    if size < 1:
        raise LayoutError("there is no rank to cut a layer for", expected="a size of 1 or more", found=str(size))
    if not 0 <= rank < size:
        raise LayoutError("there is no such rank", expected=f"0 to {size - 1}", found=str(rank))


def replicated(geometry: Geometry, rank: int = 0, size: int = 1) -> Shard:
    """Every rank owns the whole layer."""
    return Shard(
        rank,
        size,
        tuple(Cut(0, part.size) for part in geometry.parts),
        Cut(0, geometry.in_features),
        Cut(0, geometry.experts or 1),
    )


def kept_whole(geometry: Geometry, rank: int = 0, size: int = 1) -> Shard:
    """As `replicated`, of a layer that nobody is to divide later either."""
    return replicated(geometry, rank, size)


def column(geometry: Geometry, rank: int, size: int) -> Shard:
    """Each part's output features are divided, by whole heads where it has some."""
    whole = replicated(geometry, rank, size)
    return replace(whole, out=tuple(_part_cut(part, rank, size) for part in geometry.parts))


def row(geometry: Geometry, rank: int, size: int) -> Shard:
    """The input features are divided."""
    whole = replicated(geometry, rank, size)
    return replace(whole, in_=_even(geometry.in_features, rank, size, "input features"))


def expert_parallel(geometry: Geometry, rank: int, size: int) -> Shard:
    """The experts are divided; each is whole."""
    if geometry.experts is None:
        raise LayoutError("a layer without experts cannot be divided by experts")
    whole = replicated(geometry, rank, size)
    return replace(whole, experts=_even(geometry.experts, rank, size, "experts"))


def vocabulary(multiple: int = 64) -> Sharding:
    """Rows are divided, in a vocabulary padded to a multiple of `multiple`; rows added to it likewise, apart.

    Where `size` does not divide the padded vocabulary, the multiple is raised to multiple * size.
    """
    return partial(_divide_vocabulary, multiple)


def _divide_vocabulary(multiple: int, geometry: Geometry, rank: int, size: int) -> Shard:
    cuts = tuple(vocabulary_cut(part.size, rank, size, multiple) for part in geometry.parts)
    return replace(replicated(geometry, rank, size), out=cuts)


def vocabulary_columns(multiple: int = 64) -> Sharding:
    """Features are divided; each rank has all rows, of which there are as many as `vocabulary` has of one rank."""
    return partial(_divide_features, multiple)


def _divide_features(multiple: int, geometry: Geometry, rank: int, size: int) -> Shard:
    cuts = tuple(vocabulary_cut(part.size, 0, 1, multiple) for part in geometry.parts)
    return replace(row(geometry, rank, size), out=cuts)


def vocabulary_cut(rows: int, rank: int, size: int, multiple: int = 64) -> Cut:
    """The rows of a vocabulary that one rank owns, with its share of the padding.

    Raises LayoutError for a multiple below 1, and for a rank that `size` does not have.
    """
    check_rank(rank, size)
    if multiple < 1:
        raise LayoutError(
            "a vocabulary cannot be padded to that multiple", expected="1 row or more", found=str(multiple)
        )
    padded = -(-rows // multiple) * multiple
    if padded % size:
        padded = -(-rows // (multiple * size)) * multiple * size
    share = padded // size
    start, stop = min(rank * share, rows), min((rank + 1) * share, rows)
    return Cut(start, stop, share - (stop - start))


@dataclass(frozen=True, slots=True)
class IndexTable:
    """The tokens whose rows one rank has: of the base, then of those added to it, each with padding after them.

    `base` and `added` are cuts of the tokens' ids. The rows lie in that order in the rank's own table.
    """

    base: Cut
    added: Cut

    @property
    def rows(self) -> int:
        """The rows of the rank's own table."""
        return self.base.padded_size + self.added.padded_size

    @property
    def spans(self) -> tuple[tuple[int, Cut], ...]:
        """The cuts of ids that the rank has a place for, and the first row of each."""
        spans = ((0, self.base), (self.base.padded_size, self.added))
        return tuple(span for span in spans if span[1].padded_size)

    def row(self, token: int) -> int | None:
        """The row of a token in the rank's own table; None for another rank's."""
        found = (first + token - cut.start for first, cut in self.spans if cut.start <= token < cut.stop)
        return next(found, None)


def index_tokens(geometry: Geometry, shard: Shard) -> IndexTable:
    """The tokens of one rank's share of a vocabulary."""
    rows, cuts = geometry.parts[0].size, (*shard.out, Cut(0, 0))
    return IndexTable(cuts[0], Cut(rows + cuts[1].start, rows + cuts[1].stop, cuts[1].padding))


def make_vocabulary(rows: int, features: int, *, added: int = 0, kind: Kind, dtype: str, bias: bool) -> Geometry:
    """A table of `rows` tokens, and as a part of its own of `added` ones.

    Raises LayoutError unless there is a token or more of a feature or more, and no fewer than none are added.
    """
    for what, count, least in (("tokens", rows, 1), ("features", features, 1), ("added tokens", added, 0)):
        if count < least:
            raise LayoutError(f"a vocabulary has too few {what}", expected=f"{least} or more", found=str(count))
    parts = (Part("base", rows), Part("added", added)) if added else (Part("", rows),)
    return Geometry(features, parts, None, kind, dtype, bias)


def _part_cut(part: Part, rank: int, size: int) -> Cut:
    if part.heads is None:
        return _even(part.size, rank, size, f"rows of {part.name or 'the layer'}")
    head = part.size // part.heads
    if part.heads % size == 0:
        cut = _even(part.heads, rank, size, "heads")
    elif part.replicable and size % part.heads == 0:
        owner = rank // (size // part.heads)
        cut = Cut(owner, owner + 1)
    else:
        raise _uneven(part.heads, size, f"heads of {part.name or 'the layer'}", head, part.replicable)
    return Cut(cut.start * head, cut.stop * head)


def _even(count: int, rank: int, size: int, what: str) -> Cut:
    if count % size:
        raise _uneven(count, size, what)
    share = count // size
    return Cut(rank * share, (rank + 1) * share)


def _uneven(count: int, size: int, what: str, unit: int = 1, replicable: bool = False) -> ShardError:
    fits = [n for n in range(1, MAX_SIZE + 1) if count % n == 0 or (replicable and n % count == 0)]
    return ShardError(f"{count} {what} cannot be divided by {size}", where="", unit=unit, sizes=fits)
