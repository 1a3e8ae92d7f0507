"""How the neighbours of modules would have them divided, as engines do it, and what that would split.

A load takes another way where this one does not fit; engines do not.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from qload.declare import ParameterKind, ParameterSpec
from qload.errors import LayoutError
from qload.geometry import MAX_SIZE, Geometry, Part, Shard, Sharding, column, replicated, row
from qload.layout import Axis, Dim
from qload.preview.answers import Split
from qload.preview.modules import Modules
from qload.quantization import Quantization
from qload.roles import Heads, choose_sharding, find_sizes, has_whole_heads, natural_sharding, split_parts
from qload.sharding import fits

Specs = Sequence[ParameterSpec]


@dataclass(frozen=True, slots=True)
class Fault:
    """What a rank's share would split: of `spec`, or of the heads of a projection, `unit` elements along `dim`.

    `share` are the elements that each rank would have; `is_solid` says that all of them stay together. Without `spec`
    and heads the elements are no multiple of the ranks.
    """

    split: Split
    dim: Dim
    unit: int
    share: Fraction
    spec: ParameterSpec | None = None
    is_solid: bool = False


@dataclass(frozen=True, slots=True)
class NaturalDivider:
    """Divides modules as engines do: each in one way, told by its name, and part by part where it is fused on disk."""

    quantization: Quantization
    heads: Heads
    _fitting: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def find_way(self, modules: Modules) -> Sharding:
        """How they are divided, whether it fits or not; those that are not told are whole on each rank."""
        target = modules.target
        return natural_sharding(target.name, target.geometry) if modules.is_told else replicated

    def declare(self, modules: Modules) -> Specs:
        """The tensors of one of them, as they are stored."""
        return self.quantization.declare(modules.target.treatment, modules.target.geometry)

    def divide(self, modules: Modules, size: int) -> Shard | None:
        """The share of the first rank; None where it would split what cannot be split."""
        if self.find_fault(modules, size) is not None:
            return None
        return self.find_way(modules)(self._split(modules), 0, size)

    def find_fault(self, modules: Modules, size: int) -> Fault | None:
        """What a share of theirs would split, the unit that says most of it first: a block, a group, a word."""
        way, geometry = self.find_way(modules), self._split(modules)
        if way is replicated or size == 1:
            return None
        split, dim = _name(way)
        part = next((part for part in geometry.parts if not has_whole_heads(_alone(geometry, part), size)), None)
        if way is column and part is not None and part.heads is not None:
            return Fault(split, dim, part.size // part.heads, Fraction(part.size, size))
        wrong = [spec for spec in self._list_telling(modules, dim) if not _fits(geometry, way, spec, size)]
        if not wrong:
            return None
        spec = max(wrong, key=lambda spec: _rank(spec, dim))
        unit, is_solid = spec.layout.unit(dim), spec.layout.is_solid(dim)
        share = _find_share(geometry, way, dim, unit, size)
        return Fault(split, dim, unit, share, spec if unit > 1 or is_solid else None, is_solid)

    def _list_telling(self, modules: Modules, dim: Dim) -> Iterable[ParameterSpec]:
        """The tensors that a share along `dim` could split: of those alike along it, the one that says most."""
        telling: dict[Sequence[Axis], ParameterSpec] = {}
        for spec in sorted(self.declare(modules), key=lambda spec: _rank(spec, dim)):
            axes = tuple(axis for axis in spec.layout.axes if axis.dim is dim and not axis.whole)
            if axes:
                telling[axes] = spec
        return telling.values()

    def find_sizes(self, modules: Modules) -> tuple[int, ...]:
        """The numbers of ranks up to MAX_SIZE whose shares split nothing."""
        name = modules.target.name
        if name not in self._fitting:
            found = (size for size in range(1, MAX_SIZE + 1) if self.find_fault(modules, size) is None)
            self._fitting[name] = tuple(found)
        return self._fitting[name]

    def find_other(self, modules: Modules, size: int) -> Split | None:
        """How a load divides them where the natural way does not fit; None where it refuses."""
        target, specs = modules.target, self.declare(modules)
        way = choose_sharding(target.name, target.geometry, specs, size)
        if not fits(target.geometry, way, specs, size):
            return None
        return Split.WHOLE if way is replicated else _name(way)[0]

    def find_loading_sizes(self, modules: Modules) -> tuple[int, ...]:
        """The numbers of ranks up to MAX_SIZE over which a load divides them."""
        return find_sizes(modules.target.name, modules.target.geometry, self.declare(modules))

    def _split(self, modules: Modules) -> Geometry:
        target = modules.target
        return split_parts(target.name, target.geometry, self.heads)


def _name(way: Sharding) -> tuple[Split, Dim]:
    if way is row:
        return Split.ROW, Dim.IN
    return (Split.COLUMN if way is column else Split.VOCABULARY), Dim.OUT


def _alone(geometry: Geometry, part: Part) -> Geometry:
    return Geometry(geometry.in_features, (part,))


def _fits(geometry: Geometry, way: Sharding, spec: ParameterSpec, size: int) -> bool:
    """Whether shares split no unit of a tensor, and neither does the border of two parts that are divided apart."""
    is_apart = way is not row and any(_straddles(geometry, spec))
    return not is_apart and fits(geometry, way, (spec,), size)


def _straddles(geometry: Geometry, spec: ParameterSpec) -> Iterator[bool]:
    unit, start = spec.layout.unit(Dim.OUT), 0
    for part in geometry.parts[:-1]:
        start += part.size
        yield start % unit != 0


def _rank(spec: ParameterSpec, dim: Dim) -> tuple[bool, bool, int]:
    kind = spec.kind
    return kind is ParameterKind.BLOCK_SCALE, kind is ParameterKind.GROUP_SCALE, spec.layout.unit(dim)


def _find_share(geometry: Geometry, way: Sharding, dim: Dim, unit: int, size: int) -> Fraction:
    """The elements of a rank's share: of the part whose share is no whole units, if there are several."""
    shares = list(_list_shares(geometry, way, dim, size))
    return next((share for share in shares if share % unit), shares[0])


def _list_shares(geometry: Geometry, way: Sharding, dim: Dim, size: int) -> Iterator[Fraction]:
    if dim is Dim.IN:
        yield Fraction(geometry.in_features, size)
        return
    try:
        yield from (Fraction(cut.padded_size) for cut in way(geometry, 0, size).out)
    except LayoutError:
        yield from (Fraction(part.size, size) for part in geometry.parts)
