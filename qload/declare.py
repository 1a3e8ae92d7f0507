"""How a method declares the tensors of a module: one `ParameterSpec` for each.

A spec describes the whole tensor of a whole layer, never a rank's. The validator, the planner and the
layers read nothing else.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from qload.dtypes import FLOATS
from qload.geometry import Geometry
from qload.layout import Axis, Dim, Layout, expert, out, part


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
    INDEX = "group index"
    BIAS = "bias"
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


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One declared tensor.

    `name` is its name on the layer, `stored_as` its name on disk below the module. `dtypes` are the
    allowed storage dtypes by safetensors code, and it is kept in the one that it is stored in, unless
    `cast` turns it into the layer's own. `bounds` are the least value and the first one too great.
    Metadata is accounted for and checked, but not loaded.
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
        if self.view is View.FLAT:
            return prod(stored) == prod(declared)
        if self.view is View.SQUEEZED:
            return _squeeze(stored) == _squeeze(declared)
        return stored == declared


_INTEGER_KINDS = (ParameterKind.PACKED, ParameterKind.ZERO_POINT, ParameterKind.INDEX, ParameterKind.MASK)
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
    name: str, *axes: Axis, dtypes: tuple[str, ...] = _SCALE_DTYPES, stored_as: str | None = None
) -> ParameterSpec:
    """One scale for each group of input features of each row."""
    return _spec(name, ParameterKind.GROUP_SCALE, axes, dtypes, stored_as)


def channel_scale(
    name: str, *axes: Axis, dtypes: tuple[str, ...] = _SCALE_DTYPES, stored_as: str | None = None
) -> ParameterSpec:
    """One scale for each row."""
    return _spec(name, ParameterKind.CHANNEL_SCALE, axes, dtypes, stored_as, view=View.SQUEEZED)


def block_scale(
    name: str, *axes: Axis, dtypes: tuple[str, ...] = _SCALE_DTYPES, stored_as: str | None = None
) -> ParameterSpec:
    """One scale for each block of rows and columns."""
    return _spec(name, ParameterKind.BLOCK_SCALE, axes, dtypes, stored_as)


def tensor_scale(
    name: str, *, dtypes: tuple[str, ...] = _SCALE_DTYPES, stored_as: str | None = None, required: bool = True
) -> ParameterSpec:
    """One scale for each fused part; on disk a scalar or a one-element tensor for each."""
    return _spec(name, ParameterKind.TENSOR_SCALE, (part(),), dtypes, stored_as, required=required, view=View.SQUEEZED)


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


def mask(name: str, *axes: Axis, dtypes: tuple[str, ...] = ("U8",), stored_as: str | None = None) -> ParameterSpec:
    """Bits that say which elements of a weight are stored, and which are zero."""
    return _spec(name, ParameterKind.MASK, axes, dtypes, stored_as)


def metadata(
    name: str, *axes: Axis, dtypes: tuple[str, ...], stored_as: str | None = None, view: View = View.EXACT
) -> ParameterSpec:
    """A tensor that may be stored and is not needed."""
    return _spec(name, ParameterKind.METADATA, axes, dtypes, stored_as, required=False, view=view)


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
) -> ParameterSpec:
    return ParameterSpec(name, kind, Layout(axes), dtypes, stored_as or name, required, cast, view, bounds)
