"""The stored tensors of quantized layers, each with what its method declares of it."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from qload.checkpoint import Checkpoint, TensorEntry
from qload.checkpoint.names import join_name
from qload.declare import ParameterSpec
from qload.dtypes import BITS
from qload.geometry import Kind
from qload.outline import Outline
from qload.plan.fits import view_bytes
from qload.quantization import Quantization
from qload.values import FLOAT_BITS, find_width

_A_FEW = 64
"""More bytes than a number has, for each of the parts of a layer that are fused on disk."""


class Stored(NamedTuple):
    """A stored tensor, its declaration, and the layer that reads it; `is_sample` as of an outline's samples."""

    entry: TensorEntry
    spec: ParameterSpec
    layer: str
    is_of_cache: bool
    is_sample: bool

    @property
    def itemsize(self) -> int:
        return max(BITS[self.entry.dtype] // 8, 1)

    @property
    def width(self) -> int | None:
        """The bytes of the integers that it is looked at as; None for those that are stored."""
        return find_width(self.spec.facts, self.entry.dtype)

    @property
    def is_compared(self) -> bool:
        """Whether it is a scale of a whole tensor, or a few, that others say something of."""
        is_number = self.spec.kind.is_scale and self.entry.nbytes <= _A_FEW and self.entry.dtype in FLOAT_BITS
        return is_number and (self.spec.facts.shared or self.is_of_cache)


def list_stored(
    checkpoint: Checkpoint,
    quantization: Quantization,
    outline: Outline,
    is_wanted: Callable[[ParameterSpec, bool], bool] = lambda spec, is_of_cache: True,
) -> Iterator[Stored]:
    """What the layers store that their method quantizes, as far as it is in a dtype that is declared.

    `is_wanted` says of which declarations, given whether they are of a cache.
    """
    specs = {
        sample.name: [
            spec
            for spec in quantization.declare(sample.treatment, sample.geometry)
            if spec.loaded and is_wanted(spec, sample.geometry.kind is Kind.KV_CACHE)
        ]
        for sample in outline.samples
        if sample.treatment.scheme is not None
    }
    for name, sample in outline.layers:
        for spec in specs.get(sample.name, ()):
            entry = checkpoint.tensors.get(join_name(name, spec.stored_as, checkpoint.modules))
            if entry is None:
                continue
            seen = view_bytes(entry, spec)
            if seen.dtype in spec.dtypes:
                yield Stored(seen, spec, name, sample.geometry.kind is Kind.KV_CACHE, name == sample.name)
