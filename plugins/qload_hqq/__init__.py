"""HQQ: values of 1 to 8 bits with zero-points and scales in floats, in groups along either axis of the flat weight.

A weight is reshaped into groups of consecutive values, one to a row (axis 1), or into as many rows as a group has
values (axis 0). Halves, quarters, eighths or tenths of these rows are packed into one word, the first in the highest
bits: 10 values of 3 bits in 32, else without gaps in 8. Five and six bits take eight, 1.58 takes two. Source of the
layout: hqq's `Quantizer`, `BitPack` and `HQQLinear.state_dict`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd

from qload.catalogue import Rule, Tier, error
from qload.checkpoint import TensorEntry
from qload.declare import ParameterSpec, View, group_scale, metadata, packed, setting, striped, zero_point
from qload.dtypes import FLOATS
from qload.findings import Finding, report
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, MethodInfo, ModuleInfo, Parts
from qload.layout import Axis, fixed, in_, out
from qload_hqq.config import HqqConfig
from qload_hqq.presets import PRESETS

COUNTS = {8: 1, 6: 1, 5: 1, 4: 2, 3: 10, 2: 4, 1.58: 4, 1: 8}
"""The values in a word, by bits."""
QUANTIZED_SCALES = ("scale_q", "zero_q")
SETTINGS = frozenset(
    {"nbits", "axis", "group_size", "quant_scale", "quant_zero", "view_as_float", "offload_meta", "channel_wise"}
)
"""The numbers beside the weights that say how to read them, and must agree with the config."""
TEXTS = ("packing", "unpack_view_dtype", "compute_dtype")
FLAGS = ("optimize", "round_zero", "encoded_state_dict", "stores_quant_config")
WIDTHS = {1: 8, 2: 4, 4: 2, 8: 1, 10: 3}
"""The bits that a value takes in a word, by the values in it."""

_OTHER_AXIS = error(
    "HQQ001",
    Tier.HEADERS,
    "scales of groups along the other axis than the config's",
    failure="There are as many scales along either axis, so that they can be read along the wrong one: every group "
    "gets the scale of another, and nothing fails.",
    cure="Correct `axis` in `quant_config` to the one that the weights were quantized along.",
)


@dataclass(frozen=True, slots=True)
class HqqScheme:
    """Bits; group size, None for as many as the weight has along the axis; and how its tensors are stored.

    `as_float` is whether the words are stored as if they were floats. `joined` is whether zero-points and scales are
    one tensor. `optimized` and `rounded` are how the zero-points of a weight that is not quantized yet would be found.
    """

    bits: float
    group_size: int | None
    axis: int
    as_float: bool = False
    joined: bool = False
    optimized: bool = True
    rounded: bool = False

    @property
    def count(self) -> int:
        """The values in a word."""
        return COUNTS[self.bits]

    @property
    def places(self) -> list[int]:
        """The places of the stripes in a word, of which the first is the highest."""
        return [WIDTHS[self.count] * place for place in reversed(range(self.count))]

    def __str__(self) -> str:
        group = f"group {self.group_size}" if self.group_size else "channel"
        return f"int{self.bits:g} {group} axis {self.axis}"


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="1 to 8 bits by group, along either axis",
        config=HqqConfig,
        capabilities=Capabilities(
            embedding=True,
            parts=Parts.ANY,
            quantize=True,
            tensor_parallel="whole groups of columns; 8 bits on axis 1: rows too",
        ),
        runtime="qload_hqq.runtime",
        is_by_place=True,
        presets=PRESETS,
    )


def qload_scheme_for(config: HqqConfig, module: ModuleInfo) -> HqqScheme | None:
    params = config.params(module.names)
    if params is None or not _is_quantized(module):
        return None
    weights = params.weight_quant_params
    if weights.nbits not in COUNTS:
        raise ValueError(f"{weights.nbits:g} bits are none of {', '.join(f'{bits:g}' for bits in COUNTS)}")
    if not weights.channel_wise:
        raise ValueError("one scale for a whole weight, channel_wise false, is not supported")
    if any(leaf.startswith(QUANTIZED_SCALES) for leaf in module.stored):
        raise ValueError("scales or zero-points that are quantized themselves are not supported")
    joined = "zero_scale" in module.stored if module.stored else params.offload_meta
    return HqqScheme(
        weights.nbits,
        weights.group_size,
        weights.axis,
        weights.view_as_float,
        joined,
        weights.optimize,
        weights.round_zero,
    )


def qload_create_weights(scheme: HqqScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    dtypes = ("I32",) if scheme.bits == 3 else ("U8",)
    view = View.BYTES if scheme.as_float else View.FLAT
    words = packed("W_q", *_pack_axes(scheme, geometry), dtypes=dtypes + FLOATS * scheme.as_float, view=view)
    return words, *_create_scales(scheme, geometry), *_create_settings(scheme, geometry)


def qload_rules() -> tuple[Rule, ...]:
    return (_OTHER_AXIS,)


def qload_check(scheme: HqqScheme, tensors: Mapping[str, TensorEntry]) -> Iterator[Finding]:
    """Scales of both axes are as many, and read along the wrong one would pass for right."""
    for name in ("scale", "zero", "zero_scale"):
        entry = tensors.get(name)
        if entry is not None and _lies_across(entry.shape[-2:], scheme.axis):
            yield report(
                _OTHER_AXIS,
                "the scales are of groups along the other axis",
                where=entry.name,
                file=entry.file,
                expected="one column" if scheme.axis == 1 else "one row",
                found=list(entry.shape),
                remedy="correct the axis in quant_config",
            )


def _is_quantized(module: ModuleInfo) -> bool:
    """The config names no modules but those that it skips: of the rest the checkpoint itself says it."""
    return module.stores({"W_q"}, otherwise=module.kind is Kind.LINEAR)


def _lies_across(shape: tuple[int, ...], axis: int) -> bool:
    """Whether scales [rows, columns] have their one row or column along the axis of the groups' order."""
    return len(shape) == 2 and shape[axis] != 1 and shape[1 - axis] == 1


def _pack_axes(scheme: HqqScheme, geometry: Geometry) -> tuple[Axis, ...]:
    count, group, columns = scheme.count, scheme.group_size, geometry.in_features
    if scheme.axis == 1 or group is None:
        axes = striped(geometry, count, group)
    elif group % count == 0 and all(part.size % count == 0 for part in geometry.parts):
        axes = out(count, solid=True), in_()
    else:
        common = gcd(group, columns)
        axes = in_(columns, -(-group // count)), out(group // common, columns // common, solid=True)
    return axes if _is_solid(scheme) else (out(), in_())


def _create_scales(scheme: HqqScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    axes, view = _scale_axes(scheme, geometry), View.FLAT
    if scheme.joined:
        return (group_scale("zero_scale", fixed(2), *axes, view=view),)
    return group_scale("scale", *axes, view=view), zero_point("zero", *axes, dtypes=FLOATS, view=view)


def _scale_axes(scheme: HqqScheme, geometry: Geometry) -> tuple[Axis, ...]:
    """A scale for each group: along the inputs where groups divide these, else one after another."""
    group, columns = scheme.group_size, geometry.in_features
    solid = _is_solid(scheme)
    if scheme.axis == 0:
        if group is None:
            return fixed(1), in_()
        common = gcd(group, columns)
        if all(part.size % group == 0 for part in geometry.parts):
            return out(group, solid=True), in_()
        return in_(columns, 1), out(group // common, columns // common, solid=True)
    if group is None:
        return out(solid=solid), fixed(1)
    if columns % group == 0:
        return out(solid=solid), in_(group)
    common = gcd(group, columns)
    return out(group // common, columns // common, solid=True), in_(columns, 1)


def _is_solid(scheme: HqqScheme) -> bool:
    """Whether rows that lie apart share words or groups, so that none can be had without the others."""
    return scheme.count > 1 or scheme.axis == 0


def _create_settings(scheme: HqqScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    """What is stored beside the weights: numbers that say how to read them, and what is not needed."""
    flags = {
        "quant_scale": False,
        "quant_zero": False,
        "view_as_float": scheme.as_float,
        "offload_meta": scheme.joined,
        "channel_wise": True,
    }
    lengths = {geometry.in_features} if scheme.axis == 1 else {part.size for part in geometry.parts}
    group = scheme.group_size or (lengths.pop() if len(lengths) == 1 else None)
    return (
        setting("nbits", int(scheme.bits), dtypes=("I32", "F32")),
        setting("axis", scheme.axis),
        setting("group_size", group) if group is not None else metadata("group_size", dtypes=("I32",)),
        *(setting(name, int(value), dtypes=("U8",)) for name, value in flags.items()),
        metadata("shape", fixed(2), dtypes=("I64",)),
        *(metadata(name, dtypes=("U8",), view=View.ANY) for name in TEXTS),
        *(metadata(name, dtypes=("U8",)) for name in FLAGS),
    )
