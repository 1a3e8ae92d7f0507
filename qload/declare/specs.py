"""What a declaration is made of: the kinds of tensors, how they may be stored, and what is said of each."""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from qload.layout import Layout


class ParameterKind(StrEnum):
    """What a tensor is for, in the noun that findings call it by; fills follow it too."""

    WEIGHT = "weight"
    PACKED = "packed weight"
    ZERO_POINT = "zero-point"
    GROUP_SCALE = "group scale"
    CHANNEL_SCALE = "channel scale"
    BLOCK_SCALE = "block scale"
    TENSOR_SCALE = "tensor scale"
    GLOBAL_SCALE = "global scale"
    """A scale of scales."""
    TABLE = "lookup table"
    INDEX = "group index"
    SETTING = "setting"
    """A number that the checkpoint stores beside the weights, and that must be what the config says."""
    BIAS = "bias"
    DOCUMENT = "document"
    MASK = "mask"
    """Bits that say which elements are stored."""
    METADATA = "metadata"

    @property
    def is_scale(self) -> bool:
        return self.value.endswith("scale")


class View(StrEnum):
    """How a tensor's shape on disk relates to the declared one; the bytes are the same."""

    EXACT = "exact"
    SQUEEZED = "squeezed"
    """Dimensions of size 1 do not count."""
    FLAT = "flat"
    """Only the number of entries counts."""
    BEGINNING = "beginning"
    """What is stored has one axis and may be shorter than the declared last one, the rest of which stays zero."""
    ANY = "any"
    """The shape does not count: for what is not loaded."""
    BYTES = "bytes"
    """Only the number of bytes counts: whichever of the dtypes they are stored as, they are read as the first."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Float16s inside of blocks of an even number of bytes: where each begins, which is even too."""

    nbytes: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OtherVersion:
    """What another version of a format stores in every place, and how to say so.

    `words` are int32 that follow each other again and again along the last axis. `expected` and `found` are the values
    in them, in words, and `remedy` the way out.
    """

    words: tuple[int, ...]
    expected: str
    found: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What only a format knows of the numbers in a tensor.

    A scale that is not `signed` is never negative. A global scale that `divides` is greater than 1, one that does not
    is less; None says nothing of it. A `shared` one is the same in all parts that are computed at once. `blocks` are
    those that a packed weight is made of.
    """

    signed: bool = True
    divides: bool | None = None
    shared: bool = False
    blocks: Blocks | None = None
    other: OtherVersion | None = None


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One declared tensor.

    `name` is its name on the layer, `stored_as` its name on disk below the module. `dtypes` are the
    allowed storage dtypes by safetensors code, and it is kept in the one that it is stored in, unless
    `cast` turns it into the layer's own. `bounds` are the least value and the first one too great, which for a
    scale stands for NaN. A `partial` tensor may be stored for some of a layer's parts alone; the others keep the
    fill. Metadata is accounted for and checked, but not loaded. `sample` is what a document could say, and `facts` are
    what more is known of the numbers.
    """

    name: str
    kind: ParameterKind
    layout: Layout
    dtypes: tuple[str, ...]
    stored_as: str
    required: bool = True
    cast: bool = False
    view: View = View.EXACT
    bounds: tuple[int, int] | None = None
    partial: bool = False
    sample: str = ""
    facts: Facts = Facts()

    @property
    def fill(self) -> float:
        """What the tensor holds until it is written: NaN cannot pass for a scale or a weight."""
        if self.kind.is_scale and self.bounds is not None:
            return self.bounds[1]
        return 0 if self.kind in _INTEGER_KINDS else float("nan")

    @property
    def loaded(self) -> bool:
        return self.kind is not ParameterKind.METADATA

    def measure(self, length: int) -> "ParameterSpec":
        """The declaration with that length in place of the one that only a stored tensor knows."""
        return replace(self, layout=self.layout.measure(length))

    def matches(self, stored: tuple[int, ...], declared: tuple[int, ...]) -> bool:
        """Whether a tensor stored with the first shape can be viewed as one of the second."""
        if self.view is View.ANY:
            return True
        if self.view in (View.FLAT, View.BYTES):
            return prod(stored) == prod(declared)
        if self.view is View.SQUEEZED:
            return _squeeze(stored) == _squeeze(declared)
        if self.view is View.BEGINNING:
            return len(stored) == 1 and 0 < stored[0] <= declared[-1] == prod(declared)
        return stored == declared


_INTEGER_KINDS = (
    ParameterKind.PACKED,
    ParameterKind.ZERO_POINT,
    ParameterKind.INDEX,
    ParameterKind.SETTING,
    ParameterKind.DOCUMENT,
    ParameterKind.MASK,
)


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
