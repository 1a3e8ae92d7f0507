"""A function for each purpose that a tensor can have: what makes its declaration."""

from dataclasses import replace

from qload.declare.specs import Blocks, Facts, OtherVersion, ParameterKind, ParameterSpec, View
from qload.dtypes import FLOATS
from qload.layout import Axis, Layout, fixed, out, part

_SCALE_DTYPES = ("F32", "BF16", "F16")
_E8M0_NAN = 0xFF
_NO_FACTS = Facts()


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
    name: str,
    *axes: Axis,
    dtypes: tuple[str, ...],
    stored_as: str | None = None,
    view: View = View.EXACT,
    blocks: Blocks | None = None,
) -> ParameterSpec:
    """A quantized weight, kept as it is stored; `blocks` says where in it scales lie."""
    return _spec(name, ParameterKind.PACKED, axes, dtypes, stored_as, view=view, facts=Facts(blocks=blocks))


def zero_point(
    name: str,
    *axes: Axis,
    dtypes: tuple[str, ...],
    stored_as: str | None = None,
    required: bool = True,
    view: View = View.EXACT,
    bounds: tuple[int, int] | None = None,
    other: OtherVersion | None = None,
) -> ParameterSpec:
    """Zero-points, packed or not: integers that are not packed lie inside `bounds`, as those of an index do.

    `other` is what they would be in another version of the format.
    """
    kind, facts = ParameterKind.ZERO_POINT, Facts(other=other)
    return _spec(name, kind, axes, dtypes, stored_as, required=required, view=view, bounds=bounds, facts=facts)


def group_scale(
    name: str,
    *axes: Axis,
    dtypes: tuple[str, ...] = _SCALE_DTYPES,
    stored_as: str | None = None,
    view: View = View.EXACT,
    signed: bool = True,
) -> ParameterSpec:
    """One scale for each group of input features of each row; one that is not `signed` is never negative."""
    return _spec(name, ParameterKind.GROUP_SCALE, axes, dtypes, stored_as, view=view, facts=Facts(signed))


def channel_scale(
    name: str,
    *axes: Axis,
    dtypes: tuple[str, ...] = _SCALE_DTYPES,
    stored_as: str | None = None,
    required: bool = True,
    signed: bool = True,
) -> ParameterSpec:
    """One scale for each row, or for each column; one that is not `signed` is never negative."""
    kind, view, facts = ParameterKind.CHANNEL_SCALE, View.SQUEEZED, Facts(signed)
    return _spec(name, kind, axes, dtypes, stored_as, required=required, view=view, facts=facts)


def power_scale(name: str, *axes: Axis, stored_as: str | None = None, view: View = View.EXACT) -> ParameterSpec:
    """A power of two for each group of input features of each row, stored as its exponent with 127 added: E8M0.

    The code 255 is NaN. Source: the OCP Microscaling Formats specification, 5.4.1.
    """
    bounds = (0, _E8M0_NAN)
    return _spec(name, ParameterKind.GROUP_SCALE, axes, ("U8",), stored_as, view=view, bounds=bounds)


def block_scale(
    name: str,
    *axes: Axis,
    dtypes: tuple[str, ...] = _SCALE_DTYPES,
    stored_as: str | None = None,
    view: View = View.EXACT,
) -> ParameterSpec:
    """One scale for each block of rows and columns, never negative."""
    return _spec(name, ParameterKind.BLOCK_SCALE, axes, dtypes, stored_as, view=view, facts=Facts(signed=False))


def tensor_scale(
    name: str,
    *,
    dtypes: tuple[str, ...] = _SCALE_DTYPES,
    stored_as: str | None = None,
    required: bool = True,
    partial: bool = False,
    signed: bool = False,
    shared: bool = False,
) -> ParameterSpec:
    """One scale for each fused part; on disk a scalar or a one-element tensor for each, never negative.

    With `partial`, for those that store one; with `signed`, some are negative; with `shared`, it is the same for all.
    """
    kind, view, facts = ParameterKind.TENSOR_SCALE, View.SQUEEZED, Facts(signed, shared=shared)
    required = required and not partial
    return _spec(name, kind, (part(),), dtypes, stored_as, required=required, view=view, partial=partial, facts=facts)


def global_scale(
    name: str,
    *,
    dtypes: tuple[str, ...] = ("F32",),
    stored_as: str | None = None,
    divides: bool | None = None,
    shared: bool = False,
) -> ParameterSpec:
    """One scale for the scales of each fused part; on disk a scalar or a one-element tensor for each.

    It is positive: greater than 1 where it `divides`, less where it multiplies; None says nothing of that. With
    `shared`, it is the same for all.
    """
    kind, view, facts = ParameterKind.GLOBAL_SCALE, View.SQUEEZED, Facts(signed=False, divides=divides, shared=shared)
    return _spec(name, kind, (part(),), dtypes, stored_as, view=view, facts=facts)


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
    name: str,
    *axes: Axis,
    dtypes: tuple[str, ...],
    stored_as: str | None = None,
    view: View = View.EXACT,
    partial: bool = False,
) -> ParameterSpec:
    """A tensor that may be stored and is not needed, or not by this layer; with `partial`, for some fused parts."""
    kind = ParameterKind.METADATA
    return _spec(name, kind, axes, dtypes, stored_as, required=False, view=view, partial=partial)


def setting(
    name: str, value: int, *, dtypes: tuple[str, ...] = ("I32",), stored_as: str | None = None
) -> ParameterSpec:
    """A number that may be stored for each fused part, and must then be `value`."""
    bounds = (value, value + 1)
    kind, view = ParameterKind.SETTING, View.SQUEEZED
    return _spec(name, kind, (part(),), dtypes, stored_as, required=False, view=view, bounds=bounds)


def bias() -> ParameterSpec:
    """A layer's bias. The core declares it for every method."""
    return _spec("bias", ParameterKind.BIAS, (out(),), FLOATS, None, cast=True)


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
    facts: Facts = _NO_FACTS,
) -> ParameterSpec:
    stored_as = stored_as or name
    return ParameterSpec(
        name, kind, Layout(axes), dtypes, stored_as, required, cast, view, bounds, partial, facts=facts
    )
