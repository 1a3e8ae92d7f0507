"""The modules of a checkpoint as ranks divide them: with heads, and the sizes that headers leave open."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qload.checkpoint import Checkpoint
from qload.dtypes import CONFIG_NAMES, FLOATS
from qload.geometry import Geometry, Kind, Part, column, replicated, row
from qload.outline import Outline
from qload.patterns import merge_names
from qload.plan import Target, find_faults
from qload.quantization import Quantization
from qload.roles import Heads, choose_sharding, make_part, read_heads

_WIDTHS = ("hidden_size", "d_model", "n_embd")
_EXPERT = re.compile(r"(?P<mixture>.*\bexperts)\.(?P<number>\d+)\.")


@dataclass(frozen=True, slots=True)
class Modules:
    """Modules that are alike: the target of one of them, the names of all, and these in one."""

    target: Target
    names: tuple[str, ...]
    where: str
    is_told: bool = True

    @property
    def is_mixture(self) -> bool:
        """Whether they are experts: a stack of them, or each by itself."""
        return self.target.geometry.experts is not None or _EXPERT.match(self.target.name) is not None

    @property
    def mixtures(self) -> Mapping[str, Sequence[int]]:
        """The numbers of experts that are stored one by one, by the mixture that they are of."""
        found: dict[str, list[int]] = defaultdict(list)
        for match in map(_EXPERT.match, self.names):
            if match is not None:
                found[match["mixture"]].append(int(match["number"]))
        return found


def list_modules(checkpoint: Checkpoint, quantization: Quantization, drawn: Outline, dtype: str) -> Iterator[Modules]:
    """The modules of an outline that are layers, which compute in `dtype`.

    `checkpoint` may lack those that are like another one.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for name, sample in drawn.layers:
        names[sample.name].append(name)
    widths, heads = _read_widths(checkpoint.config), read_heads(checkpoint.config)
    for sample in drawn.samples:
        target = _resize(sample, replace(sample.geometry, dtype=dtype))
        told = _settle(target, widths, checkpoint, quantization)
        target = _join_heads(told if told is not None else target, heads)
        alike = tuple(names[sample.name])
        yield Modules(target, alike, merge_names(alike), told is not None)


def choose_dtype(checkpoint: Checkpoint) -> str:
    """The code of the dtype that a model's config names, or else that in which most values are stored."""
    config = checkpoint.config
    holders = (config, *(each for each in config.values() if isinstance(each, Mapping)))
    written = (holder.get(key) for holder in holders for key in ("dtype", "torch_dtype"))
    for name in written:
        if isinstance(name, str) and name.removeprefix("torch.") in CONFIG_NAMES:
            return CONFIG_NAMES[name.removeprefix("torch.")]
    stored = dict.fromkeys(FLOATS, 0)
    for entry in checkpoint.tensors.values():
        if entry.dtype in stored:
            stored[entry.dtype] += entry.nbytes
    return max(FLOATS, key=lambda code: stored[code])


def _read_widths(config: Mapping[str, Any]) -> frozenset[int]:
    """What a config, and those nested in it, say of how wide what goes from layer to layer is."""
    holders = (config, *(each for each in config.values() if isinstance(each, Mapping)))
    found = (holder.get(key) for holder in holders for key in _WIDTHS)
    return frozenset(width for width in found if type(width) is int and width > 0)


def _settle(
    target: Target, widths: frozenset[int], checkpoint: Checkpoint, quantization: Quantization
) -> Target | None:
    """The module with the rows and columns that it has; None where the stored tensors would do for others as well.

    What a module takes in, where it is divided by what it gives, is as wide as the model; and the other way round.
    """
    way = choose_sharding(target.name, target.geometry, (), 1)
    if way not in (column, row) or not _is_open(target, checkpoint, quantization):
        return target
    elements = target.geometry.out_features * target.geometry.in_features
    for width in sorted(widths):
        sizes = (elements // width, width) if way is column else (width, elements // width)
        found = _reshape(target, *sizes)
        if elements % width == 0 and _agrees(found, checkpoint, quantization):
            return found
    return None


def _is_open(target: Target, checkpoint: Checkpoint, quantization: Quantization) -> bool:
    """Whether the tensors are stored so that as many elements in other rows would be stored alike."""
    rows, columns = target.geometry.out_features, target.geometry.in_features
    others = ((1, rows * columns), (2 * rows, columns // 2), (rows * columns, 1))
    return any(
        sizes != (rows, columns)
        and sizes[0] * sizes[1] == rows * columns
        and _agrees(_reshape(target, *sizes), checkpoint, quantization)
        for sizes in others
    )


def _agrees(target: Target, checkpoint: Checkpoint, quantization: Quantization) -> bool:
    """Whether a module's tensors are stored as a layer of its sizes would be."""
    names = checkpoint.modules.get(target.name, {}).values()
    alone = replace(checkpoint, tensors={name: checkpoint.tensors[name] for name in names}, findings=())
    return not find_faults(alone, quantization, [target])


def _reshape(target: Target, rows: int, columns: int) -> Target:
    return _resize(target, replace(target.geometry, parts=(Part("", rows),), in_features=columns))


def _join_heads(target: Target, heads: Heads) -> Target:
    """The module with the heads of its output features, where it is a projection to them."""
    geometry = target.geometry
    if geometry.kind is not Kind.LINEAR:
        return target
    return _resize(target, replace(geometry, parts=(make_part(target.name, geometry.out_features, heads),)))


def _resize(target: Target, geometry: Geometry) -> Target:
    return replace(target, geometry=geometry, shard=replicated(geometry))
