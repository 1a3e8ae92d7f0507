"""The sizes of quantized modules, solved from the shapes of their tensors: the axis formula, read backwards."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from qload.checkpoint import TensorEntry
from qload.declare import ParameterKind, ParameterSpec, View
from qload.dtypes import FLOATS
from qload.geometry import Geometry, Kind, single
from qload.layout import Dim
from qload.outline.modules import StoredModule
from qload.plan.fits import view_bytes
from qload.quantization import Quantization

_WEIGHTS = (ParameterKind.PACKED, ParameterKind.WEIGHT)

PROBE = single(1, 1)
"""Any geometry: of a method's declaration for it, the ratio of elements to entries is that for every other.

Where its axes depend on the geometry, the sizes are others of as many weights.
"""
STACK = replace(PROBE, experts=1, kind=Kind.EXPERTS)


@dataclass(slots=True)
class Solver:
    """Solves for sizes; of modules that are alike it takes one.

    Where a module's tensors disagree, modules of the same name in other layers decide which of them is wrong,
    and else the weight's own word is taken. A weight of which only the number of entries counts says how many
    elements there are in all; where nothing else tells rows, they are taken for one.
    """

    quantization: Quantization
    known: frozenset[int]
    solved: dict[tuple[str, Dim], set[int]] = field(default_factory=lambda: defaultdict(set))

    def solve_all(self, modules: Iterable[StoredModule]) -> list[Geometry]:
        """The geometry of each module; what those say whose tensors agree helps with the others."""
        modules = tuple(modules)
        for module in modules:
            self.learn(module)
        return [self.solve(module) for module in modules]

    def learn(self, module: StoredModule) -> None:
        """Remember the size of a module whose tensors agree."""
        for dim, ranges in self._said(module).items():
            common = _intersect(ranges)
            if common:
                self.solved[module.pattern, dim].add(self._choose(common))

    def solve(self, module: StoredModule) -> Geometry:
        said = self._said(module)
        is_stack = self._is_stack(module)
        rows = self._settle(module, Dim.OUT, said[Dim.OUT])
        columns = self._settle(module, Dim.IN, said[Dim.IN]) if said[Dim.IN] else self._count_elements(module) // rows
        return single(
            rows,
            max(1, columns),
            kind=Kind.EXPERTS if is_stack else module.info.kind,
            dtype=_dtype(module.tensors.values()),
            bias="bias" in module.tensors,
            experts=self._settle(module, Dim.EXPERT, said[Dim.EXPERT]) if is_stack else None,
        )

    def _is_stack(self, module: StoredModule) -> bool:
        """Whether its weight has an axis more than is declared: one of experts. Without one, its bias tells."""
        specs = self.quantization.declare(module.treatment, replace(PROBE, bias=True))
        more = {
            spec.kind: len(entry.shape) == len(spec.layout.axes) + 1
            for spec in specs
            if (entry := module.tensors.get(spec.stored_as)) is not None
        }
        return next((more[kind] for kind in (*_WEIGHTS, ParameterKind.BIAS) if kind in more), False)

    def _declare(self, module: StoredModule) -> tuple[ParameterSpec, ...]:
        probe = STACK if self._is_stack(module) else PROBE
        return self.quantization.declare(module.treatment, replace(probe, bias="bias" in module.tensors))

    def _settle(self, module: StoredModule, dim: Dim, ranges: Sequence[range]) -> int:
        if not ranges:
            return 1
        common = _intersect(ranges)
        if common:
            return self._choose(common)
        others = self.solved[module.pattern, dim]
        claimed = [count for count in sorted(others) if any(count in each for each in ranges)]
        return claimed[0] if claimed else self._choose(ranges[0])

    def _choose(self, counts: range) -> int:
        """A size that the config knows, or the greatest: whole units are the rule."""
        return max((count for count in counts if count in self.known), default=counts[-1])

    def _said(self, module: StoredModule) -> dict[Dim, list[range]]:
        """What each tensor's shape says of the module's sizes, the weight's first."""
        order = sorted(self._declare(module), key=lambda spec: spec.kind not in _WEIGHTS)
        said: dict[Dim, list[range]] = {Dim.OUT: [], Dim.IN: [], Dim.EXPERT: []}
        for spec in order:
            entry = module.tensors.get(spec.stored_as)
            if entry is None or _is_flat(spec, entry) or len(entry.shape) != len(spec.layout.axes):
                continue
            for axis, size in zip(spec.layout.axes, view_bytes(entry, spec).shape, strict=True):
                if axis.dim in said and (counts := axis.counts(size)):
                    said[axis.dim].append(counts)
        return said

    def _count_elements(self, module: StoredModule) -> int:
        """As many as fit into a weight of which the shape says no more; 0 where there is none."""
        for spec in self.quantization.declare(module.treatment, PROBE):
            entry = module.tensors.get(spec.stored_as)
            if entry is not None and _is_flat(spec, entry):
                logical, stored = spec.layout.ratio
                return prod(entry.shape) * logical // stored
        return 0


def _is_flat(spec: ParameterSpec, entry: TensorEntry) -> bool:
    """Whether a weight is stored as one column, of which the shape says no more than how long it is."""
    is_column = len(entry.shape) == 1 or (len(entry.shape) == 2 and entry.shape[1] == 1)
    return spec.kind in _WEIGHTS and spec.view is View.FLAT and is_column


def _intersect(ranges: Sequence[range]) -> range:
    if not ranges:
        return range(0)
    return range(max(each.start for each in ranges), min(each.stop for each in ranges))


def find_known_sizes(config: Mapping[str, Any]) -> frozenset[int]:
    """Every number in a model's config, which its layers' sizes are likely to be among."""
    sections = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    return frozenset(value for section in sections for value in section.values() if type(value) is int)


def _dtype(entries: Iterable[TensorEntry]) -> str:
    return next((entry.dtype for entry in entries if entry.dtype in FLOATS), "F32")
