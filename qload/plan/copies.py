"""The copies that fill one parameter of one rank."""

from math import prod
from typing import NamedTuple

import msgspec

from qload.checkpoint import TensorEntry
from qload.declare import Facts, ParameterKind
from qload.dtypes import storage_bytes
from qload.layout import Region, volume


class Copy(msgspec.Struct, frozen=True, gc=False):
    """From the region `source` of a stored tensor, viewed with the shape `view`, to a region of a parameter.

    The regions have the same sizes, but for axes of one entry that only the destination has. Those of a `turned`
    copy have their last two axes in different orders.

    A struct, as a checkpoint's entries are, and for the same reason.
    """

    entry: TensorEntry
    view: tuple[int, ...]
    source: Region
    destination: Region
    turned: bool = False

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.entry.dtype, volume(self.source))


class Slot(NamedTuple):
    """A parameter to be made and filled: its name on the layer, dtype code, shape, and copies.

    `fill` is what it holds before; a slot with padding starts from zero.
    """

    name: str
    kind: ParameterKind
    dtype: str
    shape: tuple[int, ...]
    fill: float
    copies: tuple[Copy, ...]
    bounds: tuple[int, int] | None = None
    facts: Facts = Facts()

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.dtype, prod(self.shape))
