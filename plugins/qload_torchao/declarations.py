"""The tensors of a weight on disk: values, scales, zero-points, and what inputs are scaled with.

Source of the layout: torchao's tensor classes in `quantization/quantize_/workflows` and `prototype/mx_formats`.
"""

from dataclasses import replace

from qload.declare import (
    ParameterSpec,
    View,
    block_scale,
    channel_scale,
    global_scale,
    group_scale,
    keep_together,
    packed,
    tensor_scale,
    zero_point,
)
from qload.dtypes import FLOATS, SCALE_DTYPES
from qload.layout import Axis, Dim, fixed, in_, out, part
from qload_torchao.schemes import (
    FLOAT8,
    FP4,
    FP6_BITS,
    GLOBAL_SCALE,
    INPUT_GLOBAL_SCALE,
    INPUT_SCALE,
    INPUT_ZERO_POINT,
    INT_DTYPES,
    PRE_SCALE,
    ZERO_POINT,
    Storage,
    TorchaoScheme,
)
from qload_torchao.values import ROW, TENSOR

TILE_ROWS, TILE_GROUPS = 128, 4
"""The rows and groups whose scales lie together where they are swizzled."""
TILE = TILE_ROWS * TILE_GROUPS

_INTEGERS: tuple[str, ...] = ("I8",)
_FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_SCALES = {Storage.MX: ("F8_E8M0",), Storage.NVFP4: ("F8_E4M3",)}


def create_weights(scheme: TorchaoScheme) -> tuple[ParameterSpec, ...]:
    """The tensors of a weight. An embedding has those of inputs too, and no use for them."""
    specs = (_values(scheme), _scale(scheme), *_zero_point(scheme), *_global_scale(scheme), *_inputs(scheme))
    if scheme.inputs is None or scheme.inputs.block[1] is None:
        return specs
    return tuple(keep_together(spec, Dim.IN, scheme.inputs.block[1]) for spec in specs)


def _values(scheme: TorchaoScheme) -> ParameterSpec:
    columns, dtypes = in_(), _INTEGERS
    if scheme.storage is Storage.INT4:
        columns, dtypes = in_(2), ("I8", "U8")
    elif scheme.element == FP4:
        columns, dtypes = in_(2), ("U8",)
    elif scheme.element in FP6_BITS:
        dtypes = ("U8",)
    elif scheme.element == FLOAT8:
        dtypes = _FLOAT8
    elif scheme.storage is Storage.MX:
        dtypes = ("F8_E4M3",) if scheme.element == "float8_e4m3fn" else ("F8_E5M2",)
    return packed("weight_quantized", out(), columns, dtypes=dtypes, stored_as="_weight_qdata")


def _scale(scheme: TorchaoScheme) -> ParameterSpec:
    """The scale, which is never negative where values are floats."""
    spec = _declare_scale(scheme)
    is_float = scheme.storage in (Storage.FLOAT8, Storage.MX, Storage.NVFP4)
    return replace(spec, facts=replace(spec.facts, signed=False)) if is_float else spec


def _declare_scale(scheme: TorchaoScheme) -> ParameterSpec:
    name, stored_as = "weight_scale", "_weight_scale"
    dtypes = _SCALES.get(scheme.storage, SCALE_DTYPES)
    axes = _scale_axes(scheme)
    if scheme.swizzled:
        spec = group_scale(name, *axes, dtypes=dtypes, stored_as=stored_as)
        return ParameterSpec(spec.name, spec.kind, spec.layout, spec.dtypes, spec.stored_as, view=View.FLAT)
    if scheme.block == TENSOR:
        return tensor_scale(name, dtypes=dtypes, stored_as=stored_as)
    if scheme.block == ROW:
        return channel_scale(name, *axes, dtypes=dtypes, stored_as=stored_as)
    make = group_scale if scheme.block[0] == 1 else block_scale
    return make(name, *axes, dtypes=dtypes, stored_as=stored_as)


def _scale_axes(scheme: TorchaoScheme) -> tuple[Axis, ...]:
    rows, columns = scheme.block
    if scheme.swizzled:
        # As many bytes as the matrix that they are stored as, which no formula cuts.
        return out(TILE_ROWS), in_(TILE_GROUPS * (columns or 1)), fixed(TILE)
    if scheme.block == TENSOR:
        return (part(),)
    along = (part() if rows is None else out(rows), fixed(1) if columns is None else in_(columns))
    return along[::-1] if scheme.storage is Storage.INT4 else along


def _zero_point(scheme: TorchaoScheme) -> tuple[ParameterSpec, ...]:
    if ZERO_POINT not in scheme.tensors:
        return ()
    dtypes = {Storage.INT8: ("I8",), Storage.INTX: ("I8", *FLOATS)}.get(scheme.storage, FLOATS)
    squeezed = scheme.block in (TENSOR, ROW)
    view = View.SQUEEZED if squeezed else View.EXACT
    spec = _zero("weight_zero_point", ZERO_POINT, *_scale_axes(scheme), dtypes=dtypes, view=view)
    return (replace(spec, bounds=_bounds(scheme)),)


def _bounds(scheme: TorchaoScheme) -> tuple[int, int] | None:
    """Those of values, which zero-points of few bits are clamped to. Source: torchao's `choose_qparams_affine`."""
    if scheme.storage is not Storage.INTX or scheme.element not in INT_DTYPES:
        return None
    half = 1 << (int(scheme.element.removeprefix("int")) - 1)
    return -half, half


def _global_scale(scheme: TorchaoScheme) -> tuple[ParameterSpec, ...]:
    if GLOBAL_SCALE not in scheme.tensors:
        return ()
    return (global_scale("weight_global_scale", stored_as=f"_weight_{GLOBAL_SCALE}", divides=False),)


def _inputs(scheme: TorchaoScheme) -> tuple[ParameterSpec, ...]:
    specs = {
        PRE_SCALE: channel_scale("input_pre_scale", part(), in_(), stored_as=f"_weight_{PRE_SCALE}"),
        INPUT_SCALE: tensor_scale("input_scale", stored_as=f"_weight_{INPUT_SCALE}"),
        INPUT_ZERO_POINT: _zero(
            "input_zero_point", INPUT_ZERO_POINT, part(), dtypes=("I8", "I32", *FLOATS), view=View.SQUEEZED
        ),
        INPUT_GLOBAL_SCALE: global_scale("input_global_scale", stored_as=f"_weight_{INPUT_GLOBAL_SCALE}"),
    }
    return tuple(spec for name, spec in specs.items() if name in scheme.tensors)


def _zero(name: str, stored: str, *axes: Axis, dtypes: tuple[str, ...], view: View) -> ParameterSpec:
    return zero_point(name, *axes, dtypes=dtypes, stored_as=f"_weight_{stored}", view=view)
