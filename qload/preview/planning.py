"""The plan of every rank, for each number of ranks: layers that are alike are planned once."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from qload.checkpoint import Checkpoint, TensorEntry
from qload.dtypes import FLOATS, storage_bytes
from qload.errors import ParallelError, QloadError
from qload.examination import examine
from qload.geometry import Shard
from qload.patterns import generalise, merge_names
from qload.plan import Plan, make_plan
from qload.preview.answers import Group, Obstacle, RankPlans, Share, SizePlan, Split
from qload.preview.dividing import Divider, Division, ObstacleError, collapse, count_experts
from qload.preview.modules import Modules
from qload.preview.survey import Survey, survey
from qload.quantization import Quantization
from qload.registry import Registry

_CONFIG_SUFFIX = ".json"
MOST = 1024
"""The ranks that are planned at most: one after another, so that a slip of the hand would keep one waiting."""


def plan_ranks(
    path: str | Path, sizes: Iterable[int], *, expert_parallel: bool = False, registry: Registry | None = None
) -> RankPlans:
    """What each rank of a load on each of those numbers of ranks reads and holds, from config and headers alone.

    How modules are divided is told by their names, as `qload.load` does; with `expert_parallel`, mixtures of experts
    are divided by experts. What is stored in ordinary floats is held in the config's dtype.

    Raises ParallelError for a size below 1 or above MOST, QloadError if there is no such folder, or nothing but a
    config; faults are findings.
    """
    sizes = check_sizes(sizes)
    found = examine(path, registry if registry is not None else Registry.discover())
    checkpoint = found.checkpoint
    if not checkpoint.tensors and Path(path).suffix == _CONFIG_SUFFIX:
        raise QloadError(
            "a config does not say how large what is stored is: planning needs the headers of the weights",
            where=str(path),
            remedy="give the folder with the weights, or put them beside the config",
        )
    plans = RankPlans(checkpoint.path, found.method, len(checkpoint.tensors), checkpoint.nbytes, found.findings)
    surveyed = survey(found) if plans.is_told else None
    return plans if surveyed is None else _plan(plans, _Preview.of(surveyed, expert_parallel), sizes)


def check_sizes(sizes: Iterable[int]) -> tuple[int, ...]:
    """Those numbers of ranks, each once. Raises ParallelError for what is none."""
    asked = tuple(sizes)
    for size in asked:
        check_size(size)
    return tuple(dict.fromkeys(asked))


def check_size(size: object) -> None:
    """Raises ParallelError for what is no number of ranks."""
    if type(size) is not int or not 1 <= size <= MOST:
        raise ParallelError(
            "a model cannot be divided over that many ranks",
            expected=f"a whole number from 1 to {MOST}",
            found=repr(size),
        )


def _plan(plans: RankPlans, preview: "_Preview", sizes: Iterable[int]) -> RankPlans:
    untold = tuple(each.where for each in preview.modules if not each.is_told)
    return replace(plans, sizes=tuple(preview.plan(size) for size in sizes), untold=untold)


@dataclass(frozen=True, slots=True)
class _Preview:
    """A checkpoint without the layers that are like another one, its modules, and its plain tensors by likeness.

    `whole` is what one process reads and holds of one module of each kind.
    """

    checkpoint: Checkpoint
    quantization: Quantization
    modules: tuple[Modules, ...]
    plain: tuple[tuple[TensorEntry, ...], ...]
    dtype: str
    divider: Divider
    whole: tuple[Share, ...]

    @classmethod
    def of(cls, surveyed: Survey, by_experts: bool) -> "_Preview":
        samples, quantization, modules = surveyed.checkpoint, surveyed.quantization, surveyed.modules
        whole = _share(_plan_rank(samples, quantization, [(each, each.target.shard) for each in modules]))
        plain = tuple(_group(samples.tensors[tensor.stored_as] for tensor in surveyed.outline.plain))
        divider = Divider(quantization, by_experts, count_experts(modules))
        return cls(samples, quantization, modules, plain, surveyed.dtype, divider, tuple(whole))

    def plan(self, size: int) -> SizePlan:
        """The load on so many ranks."""
        divisions: list[Division] = []
        obstacles: list[Obstacle] = []
        for modules in self.modules:
            try:
                divisions.append(self.divider.divide(modules, size))
            except ObstacleError as error:
                obstacles += error.obstacles
        if obstacles:
            return SizePlan(size, (), (), collapse(obstacles))
        groups = (*self._group_layers(divisions, size), *self._group_plain(size))
        return SizePlan(size, tuple(_add(group.ranks[rank] for group in groups) for rank in range(size)), groups, ())

    def _group_layers(self, divisions: Sequence[Division], size: int) -> Iterator[Group]:
        ranks = [self._plan_rank(divisions, rank) for rank in range(size)]
        for number, (modules, division) in enumerate(zip(self.modules, divisions, strict=True)):
            shares = tuple(_times(ranks[rank][number], division.counts[rank]) for rank in range(size))
            stored = self.whole[number].read * len(modules.names)
            label = modules.target.treatment.label
            yield Group(modules.where, len(modules.names), division.split, label, stored, shares)

    def _plan_rank(self, divisions: Sequence[Division], rank: int) -> list[Share]:
        """What one rank has of one module of each kind."""
        shards = [division.shards[rank] for division in divisions]
        plan = _plan_rank(self.checkpoint, self.quantization, list(zip(self.modules, shards, strict=True)))
        return _share(plan)

    def _group_plain(self, size: int) -> Iterator[Group]:
        for entries in self.plain:
            share = _add(_hold(entry, self.dtype) for entry in entries)
            where = merge_names(entry.name for entry in entries)
            yield Group(where, len(entries), Split.WHOLE, "", share.read, (share,) * size)


def _plan_rank(checkpoint: Checkpoint, quantization: Quantization, shards: Sequence[tuple[Modules, Shard]]) -> Plan:
    targets = [replace(modules.target, shard=shard) for modules, shard in shards]
    return make_plan(checkpoint, quantization, targets, is_expected=lambda name: True)


def _share(plan: Plan) -> list[Share]:
    return [
        Share(sum(copy.nbytes for slot in layer.slots for copy in slot.copies), layer.nbytes) for layer in plan.layers
    ]


def _hold(entry: TensorEntry, dtype: str) -> Share:
    """A tensor that every rank has, in the dtype that the model computes in."""
    held = dtype if entry.dtype in FLOATS else entry.dtype
    return Share(entry.nbytes, storage_bytes(held, prod(entry.shape)))


def _group(entries: Iterable[TensorEntry]) -> Iterator[tuple[TensorEntry, ...]]:
    """The tensors that differ only in the numbers in their names."""
    alike: dict[tuple[str, str, tuple[int, ...]], list[TensorEntry]] = defaultdict(list)
    for entry in entries:
        alike[generalise(entry.name), entry.dtype, entry.shape].append(entry)
    return (tuple(group) for group in alike.values())


def _add(shares: Iterable[Share]) -> Share:
    shares = tuple(shares)
    return Share(sum(share.read for share in shares), sum(share.held for share in shares))


def _times(share: Share, count: int) -> Share:
    return Share(share.read * count, share.held * count)
