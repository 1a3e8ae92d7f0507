"""How a method declares the tensors of a module: one `ParameterSpec` for each.

A spec describes the whole tensor of a whole layer, never a rank's. The validator, the planner and the
layers read nothing else.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import gcd, prod

from qload.dtypes import FLOATS
from qload.geometry import Geometry
from qload.layout import Axis, Dim, Layout, expert, fixed, in_, out, part


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
class ParameterSpec:
    """One declared tensor.

    `name` is its name on the layer, `stored_as` its name on disk below the module. `dtypes` are the
    allowed storage dtypes by safetensors code, and it is kept in the one that it is stored in, unless
    `cast` turns it into the layer's own. `bounds` are the least value and the first one too great. A `partial`
    tensor may be stored for some of a layer's parts alone; the others keep the fill. Metadata is accounted for and
    checked, but not loaded. `sample` is what a document could say.
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

    @property
    def fill(self) -> float:
        """What the tensor holds until it is written: NaN cannot pass for a scale or a weight."""
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
_SCALE_DTYPES = ("F32", "BF16", "F16")


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def weight(
    name: str,
    *axes: Axis,
    dtypes: tuple[str, ...] = FLOATS,
    stored_as: str | None = None,
    view: View = View.EXACT,
) -> ParameterSpec:
    """A weight that is stored as values and cast into the layer's dtype."""
    return _spec(name, ParameterKind.WEIGHT, axes, dtypes, stored_as, cast=True, view=view)


def packed(
    name: str, *axes: Axis, dtypes: tuple[str, ...], stored_as: str | None = None, view: View = View.EXACT
) -> ParameterSpec:
    """A quantized weight, kept as it is stored."""
    return _spec(name, ParameterKind.PACKED, axes, dtypes, stored_as, view=view)


def zero_point(
    name: str,
    *axes: Axis,
    dtypes: tuple[str, ...],
    stored_as: str | None = None,
    required: bool = True,
    view: View = View.EXACT,
) -> ParameterSpec:
    """Zero-points, packed or not."""
    return _spec(name, ParameterKind.ZERO_POINT, axes, dtypes, stored_as, required=required, view=view)


def group_scale(
    name: str,
    *axes: Axis,
    dtypes: tuple[str, ...] = _SCALE_DTYPES,
    stored_as: str | None = None,
    view: View = View.EXACT,
) -> ParameterSpec:
    """One scale for each group of input features of each row."""
    return _spec(name, ParameterKind.GROUP_SCALE, axes, dtypes, stored_as, view=view)


def channel_scale(
    name: str,
    *axes: Axis,
    dtypes: tuple[str, ...] = _SCALE_DTYPES,
    stored_as: str | None = None,
    required: bool = True,
) -> ParameterSpec:
    """One scale for each row, or for each column."""
    return _spec(name, ParameterKind.CHANNEL_SCALE, axes, dtypes, stored_as, required=required, view=View.SQUEEZED)


def block_scale(
    name: str,
    *axes: Axis,
    dtypes: tuple[str, ...] = _SCALE_DTYPES,
    stored_as: str | None = None,
    view: View = View.EXACT,
) -> ParameterSpec:
    """One scale for each block of rows and columns."""
    return _spec(name, ParameterKind.BLOCK_SCALE, axes, dtypes, stored_as, view=view)


def tensor_scale(
    name: str,
    *,
    dtypes: tuple[str, ...] = _SCALE_DTYPES,
    stored_as: str | None = None,
    required: bool = True,
    partial: bool = False,
) -> ParameterSpec:
    """One scale for each fused part; on disk a scalar or a one-element tensor for each.

    With `partial`, for those that store one.
    """
    kind, required = ParameterKind.TENSOR_SCALE, required and not partial
    return _spec(name, kind, (part(),), dtypes, stored_as, required=required, view=View.SQUEEZED, partial=partial)


def global_scale(name: str, *, dtypes: tuple[str, ...] = ("F32",), stored_as: str | None = None) -> ParameterSpec:
    """One scale for the scales of each fused part; on disk a scalar or a one-element tensor for each."""
    return _spec(name, ParameterKind.GLOBAL_SCALE, (part(),), dtypes, stored_as, view=View.SQUEEZED)


def index(
    name: str,
    *axes: Axis,
    bounds: tuple[int, int],
    dtypes: tuple[str, ...] = ("I32",),
    stored_as: str | None = None,
    required: bool = True,
) -> ParameterSpec:
    """Indices, each inside `bounds`: the least value, and the first one too great."""
    return _spec(
        name,
        ParameterKind.INDEX,
        axes,
        dtypes,
        stored_as,
        required=required,
        view=View.SQUEEZED,
        bounds=bounds,
    )


def table(name: str, size: int, *, dtypes: tuple[str, ...] = ("F32",), stored_as: str | None = None) -> ParameterSpec:
    """For each fused part, the `size` values that codes stand for; on disk a vector for each."""
    axes = (part(), fixed(size))
    return _spec(name, ParameterKind.TABLE, axes, dtypes, stored_as, view=View.SQUEEZED)


def document(name: str, size: int, sample: str, *, stored_as: str | None = None) -> ParameterSpec:
    """For each fused part, a text as bytes, on disk as long as it happens to be, and never longer than `size`.

    A post-load hook reads it, and gives its memory back. `sample` is one that could be stored for this geometry.
    """
    axes = (part(), fixed(size))
    spec = _spec(name, ParameterKind.DOCUMENT, axes, ("U8",), stored_as, view=View.BEGINNING)
    return replace(spec, sample=sample)


def mask(name: str, *axes: Axis, dtypes: tuple[str, ...] = ("U8",), stored_as: str | None = None) -> ParameterSpec:
    """Bits that say which elements of a weight are stored, and which are zero."""
    return _spec(name, ParameterKind.MASK, axes, dtypes, stored_as)


def metadata(
    name: str, *axes: Axis, dtypes: tuple[str, ...], stored_as: str | None = None, view: View = View.EXACT
) -> ParameterSpec:
    """A tensor that may be stored and is not needed."""
    return _spec(name, ParameterKind.METADATA, axes, dtypes, stored_as, required=False, view=view)


def setting(
    name: str, value: int, *, dtypes: tuple[str, ...] = ("I32",), stored_as: str | None = None
) -> ParameterSpec:
    """A number that may be stored for each fused part, and must then be `value`."""
    bounds = (value, value + 1)
    kind, view = ParameterKind.SETTING, View.SQUEEZED
    return _spec(name, kind, (part(),), dtypes, stored_as, required=False, view=view, bounds=bounds)


def striped(geometry: Geometry, count: int, group: int | None) -> tuple[Axis, Axis]:
    """The axes of a weight in groups of `group` columns, one below another, whose rows are packed in `count` stripes.

    A word holds one value of each stripe of consecutive rows, so that no rank can hold some of the rows. The tensor
    is viewed with a word for each input feature where that is possible, for then the input features can be cut.
    """
    columns = geometry.in_features
    if group is None or all(_are_stripes(part.size, columns, count, group) for part in geometry.parts):
        return out(count, solid=True), in_()
    common = gcd(count * group, columns)
    return out(count * group // common, columns // common, solid=True), in_(columns, group)


def _are_stripes(rows: int, columns: int, count: int, group: int) -> bool:
    return rows % count == 0 and rows * columns // group % count == 0


def bias() -> ParameterSpec:
    """A layer's bias. The core declares it for every method."""
    return _spec("bias", ParameterKind.BIAS, (out(),), FLOATS, None, cast=True)


def complete(specs: tuple[ParameterSpec, ...], geometry: Geometry) -> tuple[ParameterSpec, ...]:
    """A method's specs as the layer has them: its bias, and an axis of experts in front of each."""
    if geometry.bias and not any(spec.kind is ParameterKind.BIAS for spec in specs):
        specs = (*specs, bias())
    return tuple(stack_experts(spec, geometry) for spec in specs)


def stack_experts(spec: ParameterSpec, geometry: Geometry) -> ParameterSpec:
    """A spec with an axis of experts in front, where the layer has experts and the spec no such axis."""
    if geometry.experts is None or spec.layout.follows(Dim.EXPERT):
        return spec
    return replace(spec, layout=Layout((expert(), *spec.layout.axes)))


def _spec(
    name: str,
    kind: ParameterKind,
    axes: tuple[Axis, ...],
    dtypes: tuple[str, ...],
    stored_as: str | None,
    *,
    required: bool = True,
    cast: bool = False,
    view: View = View.EXACT,
    bounds: tuple[int, int] | None = None,
    partial: bool = False,
) -> ParameterSpec:
    return ParameterSpec(name, kind, Layout(axes), dtypes, stored_as or name, required, cast, view, bounds, partial)
