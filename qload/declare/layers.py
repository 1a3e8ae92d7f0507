"""What a layer's geometry makes of declarations: its bias, its experts, and axes that depend on its sizes."""

from dataclasses import replace
from math import gcd, lcm

from qload.declare.constructors import bias
from qload.declare.specs import ParameterKind, ParameterSpec
from qload.geometry import Geometry
from qload.layout import Axis, Dim, Layout, expert, in_, out


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


def keep_together(spec: ParameterSpec, dim: Dim, count: int) -> ParameterSpec:
    """The same tensor, of which no rank can hold some of `count` elements along `dim` that a scale of inputs serves."""
    axes = (_widen(axis, count) if axis.dim is dim else axis for axis in spec.layout.axes)
    return replace(spec, layout=Layout(tuple(axes)))


def _widen(axis: Axis, count: int) -> Axis:
    """The same axis in units of several of its own. Padding is by its own alone, so that a padded one stays."""
    units = 1 if axis.padded else lcm(axis.logical, count) // axis.logical
    return replace(axis, logical=axis.logical * units, stored=axis.stored * units)


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
