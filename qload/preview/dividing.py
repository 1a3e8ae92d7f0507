"""How modules that are alike are divided over a number of ranks, or why they cannot be."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from qload.declare import ParameterSpec
from qload.errors import ShardError
from qload.geometry import Geometry, Kind, Shard, Sharding, expert_parallel, replicated, single
from qload.layout import Dim
from qload.patterns import generalise, merge_names
from qload.preview.answers import Obstacle, Split
from qload.preview.modules import Modules
from qload.quantization import Quantization
from qload.roles import choose_sharding, find_sizes
from qload.sharding import cut_layer, divided_dims, fitting_sizes

_SPLITS = {Dim.OUT: Split.COLUMN, Dim.IN: Split.ROW, Dim.EXPERT: Split.EXPERTS}


class ObstacleError(Exception):
    """Raised where modules cannot be divided, with what stands in the way for each of them."""

    def __init__(self, obstacles: Iterable[Obstacle]) -> None:
        self.obstacles = tuple(obstacles)
        super().__init__(self.obstacles)


@dataclass(frozen=True, slots=True)
class Division:
    """For each rank its share of a module, and how many of the modules it has a share of."""

    shards: tuple[Shard, ...]
    counts: tuple[int, ...]
    split: Split


@dataclass(frozen=True, slots=True)
class Divider:
    """Divides modules over ranks; with `by_experts`, mixtures by their experts.

    `experts` are the numbers of experts of mixtures that are stored one by one.
    """

    quantization: Quantization
    by_experts: bool
    experts: Mapping[str, int]
    _fitting: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def divide(self, modules: Modules, size: int) -> Division:
        """The modules over `size` ranks. Raises ObstacleError where a share would split what cannot be split."""
        if self.by_experts and modules.is_mixture and modules.target.geometry.experts is None:
            return self._deal(modules, size)
        target, specs = modules.target, self._declare(modules)
        sharding = self._choose(modules, size)
        cut = partial(cut_layer, find_sizes=partial(self._find_sizes, modules, sharding))
        try:
            shards = [cut(target.geometry, sharding, specs, target.name, rank, size) for rank in range(size)]
        except ShardError as error:
            raise ObstacleError([_describe(error, target.name, name) for name in modules.names]) from error
        return Division(tuple(shards), (len(modules.names),) * size, _name_split(target.geometry, shards))

    def _declare(self, modules: Modules) -> tuple[ParameterSpec, ...]:
        return self.quantization.declare(modules.target.treatment, modules.target.geometry)

    def _choose(self, modules: Modules, size: int) -> Sharding:
        target = modules.target
        if not modules.is_told:
            return replicated
        if self.by_experts and modules.is_mixture:
            return expert_parallel
        return choose_sharding(target.name, target.geometry, self._declare(modules), size)

    def _find_sizes(self, modules: Modules, sharding: Sharding) -> tuple[int, ...]:
        """The numbers of ranks that the modules can be divided over, in whichever way is chosen for each."""
        name, geometry, specs = modules.target.name, modules.target.geometry, self._declare(modules)
        if name not in self._fitting:
            by_experts = sharding is expert_parallel
            found = fitting_sizes(geometry, sharding, specs) if by_experts else find_sizes(name, geometry, specs)
            self._fitting[name] = tuple(found)
        return self._fitting[name]

    def _deal(self, modules: Modules, size: int) -> Division:
        """Experts that are stored one by one, each whole on one rank."""
        owned: Counter[int] = Counter()
        obstacles = []
        for mixture, numbers in modules.mixtures.items():
            try:
                owned.update(self._own(mixture, numbers, size))
            except ShardError as error:
                obstacles.append(_describe(error, mixture, mixture))
        if obstacles:
            raise ObstacleError(obstacles)
        whole = tuple(replace(modules.target.shard, rank=rank, size=size) for rank in range(size))
        split = Split.EXPERTS if size > 1 else Split.WHOLE
        return Division(whole, tuple(owned[rank] for rank in range(size)), split)

    def _own(self, mixture: str, numbers: Sequence[int], size: int) -> Iterator[int]:
        """The rank of each of those experts of a mixture. Raises ShardError."""
        stack = replace(single(1, 1, experts=self.experts[mixture]), kind=Kind.EXPERTS)
        for rank in range(size):
            cut = cut_layer(stack, expert_parallel, (), mixture, rank, size).experts
            yield from (rank for number in numbers if cut.start <= number < cut.stop)


def _name_split(geometry: Geometry, shards: Sequence[Shard]) -> Split:
    split = next((_SPLITS[dim] for dim in divided_dims(shards)), Split.WHOLE)
    is_vocabulary = geometry.kind in (Kind.EMBEDDING, Kind.LM_HEAD)
    return Split.VOCABULARY if is_vocabulary and split is Split.COLUMN else split


def count_experts(modules: Iterable[Modules]) -> Mapping[str, int]:
    """How many experts each mixture has that are stored one by one."""
    counts: Counter[str] = Counter()
    for each in modules:
        for mixture, numbers in each.mixtures.items():
            counts[mixture] = max(counts[mixture], max(numbers) + 1)
    return counts


def collapse(obstacles: Iterable[Obstacle]) -> tuple[Obstacle, ...]:
    """One obstacle for those that differ only in the numbers of their modules."""
    alike: dict[Obstacle, dict[str, None]] = defaultdict(dict)
    for obstacle in obstacles:
        alike[replace(obstacle, where=generalise(obstacle.where))][obstacle.where] = None
    return tuple(replace(each, where=merge_names(names), count=len(names)) for each, names in alike.items())


def _describe(error: ShardError, layer: str, name: str) -> Obstacle:
    """What an error of `layer` says of `name`, which is like it, with the numbers of ranks that would do."""
    tensor = error.where.removeprefix(layer).removeprefix(".")
    facts = f" (expected {error.expected}, found {error.found})" if error.expected and error.found else ""
    return Obstacle(name, 1, tensor, error.what + facts, error.unit, error.sizes)
