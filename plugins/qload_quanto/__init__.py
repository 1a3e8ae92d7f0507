"""Quanto: weights of 8 bits by row, integers or floats, or of 4 and 2 bits by group, with scales and shifts.

The rows of a weight, in groups one below another, are packed in halves or quarters into one byte, the first in the
lowest bits. Source of the layout: optimum-quanto's `QModuleMixin`, `WeightQBytesTensor`, `WeightQBitsTensor`,
`PackedTensor` and `group`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qload.declare import (
    ParameterSpec,
    View,
    channel_scale,
    group_scale,
    metadata,
    packed,
    striped,
    tensor_scale,
    weight,
    zero_point,
)
from qload.dtypes import FLOATS
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo, Parts, SideFiles
from qload.layout import fixed, in_, out, packing
from qload_quanto.config import NONE, QuantoConfig
from qload_quanto.presets import PRESETS

SIDE_FILE = "quanto_qmap.json"
WHOLE, PACKED = "weight._data", "weight._data._data"
SCALE, SHIFT = "weight._scale", "weight._shift"
BITS = {"qint4": 4, "qint2": 2}
"""The types that are packed."""
DTYPES = {
    "qint8": "I8",
    "qfloat8_e4m3fn": "F8_E4M3",
    "qfloat8_e4m3fnuz": "F8_E4M3FNUZ",
    "qfloat8_e5m2": "F8_E5M2",
}
"""The storage dtypes of the others."""
SHIFT_DTYPES = ("F32", "BF16", "F16", "U8", "I8")
GROUP, STEP, LEAST = 128, 32, 32
"""The group size that is tried first, what it is lowered by until it divides the inputs, and where that ends."""


@dataclass(frozen=True, slots=True)
class QuantoScheme:
    """The types of weights and activations, None for those that are not quantized.

    Weights that are not `frozen` are stored as they are, and quantized whenever they are used.
    """

    weights: str | None
    activations: str | None = None
    frozen: bool = True

    @property
    def bits(self) -> int | None:
        """The bits of packed weights; None for those of whole bytes."""
        return BITS.get(self.weights or "")

    def __str__(self) -> str:
        words = [self.weights or NONE, *([] if self.frozen else ["not frozen"])]
        return " ".join(words) + (f", activations {self.activations}" if self.activations else "")


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="qint8, qint4, qint2 and qfloat8; quantized inputs and outputs",
        config=QuantoConfig,
        capabilities=Capabilities(
            embedding=True,
            parts=Parts.ANY,
            activations=True,
            quantize=True,
            tensor_parallel="8 bits: any unit, but whole rows where outputs are rounded; else whole groups of columns",
        ),
        runtime="qload_quanto.runtime",
        is_by_place=True,
        side_files=(SIDE_FILE,),
        presets=PRESETS,
    )


def qload_claim(config: Mapping[str, Any], files: SideFiles) -> Claim | None:
    """A map of the quantized modules lies beside the weights, and config.json says nothing of another method."""
    if "quantization_config" in config:
        return None
    modules = files.read_json(SIDE_FILE)
    return None if modules is None else Claim(10, {"modules": modules}, SIDE_FILE, is_native=True)


def qload_scheme_for(config: QuantoConfig, module: ModuleInfo) -> QuantoScheme | None:
    kinds = config.kinds(module.names)
    if kinds is None or not _is_quantized(config, module):
        return None
    if module.kind is Kind.LINEAR and "Linear" not in module.classes:
        raise ValueError("modules other than linear ones are not supported")
    weights, activations = (None if name == NONE else name for name in (kinds.weights, kinds.activations))
    if activations in BITS:
        raise ValueError(f"activations {activations} are not of 8 bits")
    return QuantoScheme(weights, activations, weights is not None and "weight" not in module.stored)


def qload_create_weights(scheme: QuantoScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    return *_create_weight(scheme, geometry), *_create_input_scales(scheme)


def _is_quantized(config: QuantoConfig, module: ModuleInfo) -> bool:
    """Whatever the map names is; without one the checkpoint itself says it, where it stores the module."""
    return config.modules is not None or module.stores((WHOLE, PACKED), otherwise=module.kind is Kind.LINEAR)


def _create_weight(scheme: QuantoScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    """The weight. Its inputs are one unit where a rank could not do with some: to round outputs, or whole rows."""
    columns = geometry.in_features
    whole = scheme.activations is not None or (scheme.weights is not None and not scheme.frozen)
    inputs = in_(columns, columns) if whole else in_()
    if not scheme.frozen:
        return (weight("weight", out(), inputs),)
    if scheme.bits is None:
        dtypes = (DTYPES[scheme.weights or ""],)
        data = packed("weight_data", out(), inputs, dtypes=dtypes, stored_as=WHOLE)
        return data, channel_scale("weight_scale", out(), fixed(1), stored_as=SCALE)
    group = choose_group(columns)
    groups = fixed(1) if group is None else in_(columns, columns // group) if whole else in_(group)
    stripes = striped(geometry, packing(scheme.bits, 8)[0], group)
    return (
        packed("weight_data", *stripes, dtypes=("U8",), stored_as=PACKED, view=View.FLAT),
        group_scale("weight_scale", out(solid=True), groups, stored_as=SCALE, view=View.FLAT),
        zero_point("weight_shift", out(solid=True), groups, dtypes=SHIFT_DTYPES, stored_as=SHIFT, view=View.FLAT),
    )


def _create_input_scales(scheme: QuantoScheme) -> tuple[ParameterSpec, ...]:
    """The scales of inputs and outputs, which are stored of every module."""
    names = ("input_scale", "output_scale")
    if scheme.activations is not None:
        return tuple(tensor_scale(name) for name in names)
    return tuple(metadata(name, dtypes=FLOATS) for name in names)


def choose_group(columns: int) -> int | None:
    """The group size of packed weights with that many inputs, as `QModuleMixin` chooses it; None for whole rows."""
    group = GROUP
    if columns <= group:
        return None
    while columns % group and group > LEAST:
        group -= STEP
    return None if columns % group else group
