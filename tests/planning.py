"""Plans of one layer, from what a whole checkpoint would store for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qload import Quantization
from qload.checkpoint import Checkpoint, TensorEntry
from qload.dtypes import storage_bytes
from qload.geometry import Geometry, Sharding, replicated
from qload.hookspecs import ModuleInfo
from qload.plan import Plan, Slot, Source, Target, make_plan


def entries(quantization: Quantization, geometry: Geometry, sources: Sequence[Source]) -> dict[str, TensorEntry]:
    """What a whole checkpoint would store for a layer, byte after byte."""
    found: dict[str, TensorEntry] = {}
    offset = 0
    treatment = quantization.treat(ModuleInfo((sources[0].prefix,)))
    for source in sources:
        stored = source.geometry(geometry)
        for spec in quantization.declare(treatment, stored):
            shape = spec.layout.shape(stored.extents)
            size = storage_bytes(spec.dtypes[0], int(np.prod(shape)))
            name = f"{source.prefix}.{spec.stored_as}"
            found[name] = TensorEntry(name, spec.dtypes[0], shape, "f", offset, offset + size)
            offset += size
    return found


def plan_layer(
    quantization: Quantization,
    geometry: Geometry,
    sources: Sequence[Source],
    sharding: Sharding = replicated,
    rank: int = 0,
    size: int = 1,
    changes: Mapping[str, TensorEntry | None] | None = None,
    strays: Sequence[Source] = (),
) -> Plan:
    """The plan of a layer, stored as declared but for `changes`; `strays` are sources that nothing is stored for."""
    stored = entries(quantization, geometry, sources)
    changed = {**stored, **(changes or {})}
    stored = {name: entry for name, entry in changed.items() if entry is not None}
    treatment = quantization.treat(ModuleInfo((sources[0].prefix,)))
    target = Target("layer", geometry, treatment, sharding(geometry, rank, size), (*sources, *strays))
    return make_plan(Checkpoint(Path("x"), {}, stored), quantization, [target])


def written(slot: Slot) -> "np.ndarray[Any, Any]":
    """How many copies write each entry of a slot."""
    count = np.zeros(slot.shape, dtype=np.int64)
    for copy in slot.copies:
        count[tuple(interval.slice for interval in copy.destination)] += 1
    return count


def wrong(name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, TensorEntry]:
    return {name: TensorEntry(name, dtype, shape, "f", 0, storage_bytes(dtype, int(np.prod(shape))))}
