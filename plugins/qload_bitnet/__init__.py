"""BitNet: weights of -1, 0 and 1, four to a byte, with one scale for the tensor; or made so while computing.

Source of the layout: transformers' `integrations/bitnet.py`. A byte holds a value of each quarter of the rows, the
first in its lowest bits, with 1 added. Its `BitLinear` divides by the scale, its `AutoBitLinear` multiplies by it.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from qload.declare import ParameterSpec, View, packed, tensor_scale, weight
from qload.dtypes import FLOATS
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, MethodInfo, ModuleInfo
from qload.layout import in_, out, packing, part
from qload_bitnet.config import BitNetConfig

BITS = 2
VALUES, _ = packing(BITS, 8)
"""To a byte."""


class Sense(StrEnum):
    """What is done with the scale; `online` is one that is found while computing."""

    DIVIDES = "divides"
    MULTIPLIES = "multiplies"
    ONLINE = "online"


@dataclass(frozen=True, slots=True)
class BitNetScheme:
    """The sense of the scale, and the epsilon of the norm that inputs go through first, None for none."""

    sense: Sense
    norm_epsilon: float | None = None

    def __str__(self) -> str:
        return f"ternary, scale {self.sense}" + ("" if self.norm_epsilon is None else ", inputs normed")


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="ternary weights, packed or made so while computing; int8 inputs",
        config=BitNetConfig,
        capabilities=Capabilities(
            embedding=True, activations=True, tensor_parallel="columns alone, where inputs are not normed"
        ),
        runtime="qload_bitnet.runtime",
        is_by_place=True,
    )


def qload_scheme_for(config: BitNetConfig, module: ModuleInfo) -> BitNetScheme | None:
    sense = _find_sense(config)
    if config.excludes(module.names) or not _is_quantized(config, module, sense):
        return None
    if sense is Sense.MULTIPLIES and "bias" in module.stored:
        raise ValueError("autobitlinear multiplies a bias by the weight's scale too, which is not supported")
    return BitNetScheme(sense, (config.rms_norm_eps or 0.0) if config.use_rms_norm else None)


def qload_create_weights(scheme: BitNetScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    rows, columns = geometry.out_features, geometry.in_features
    if scheme.sense is Sense.ONLINE:
        # All of a weight is one unit: its scale is a mean of the whole.
        axes = out(rows, rows), in_(columns, columns)
        specs: tuple[ParameterSpec, ...] = (packed("weight_latent", *axes, dtypes=FLOATS, stored_as="weight"),)
    else:
        quarter = -(-rows // VALUES)
        values = packed("weight_packed", out(VALUES * quarter, quarter), in_(), dtypes=("U8",), stored_as="weight")
        specs = (values, tensor_scale("weight_scale"))
    if scheme.norm_epsilon is None or geometry.kind is Kind.EMBEDDING:
        return specs
    # All inputs are one unit: the norm is of the whole.
    norm = weight("rms_norm_weight", part(), in_(columns, columns), stored_as="rms_norm.weight")
    return (*specs, replace(norm, view=View.SQUEEZED))


def _find_sense(config: BitNetConfig) -> Sense:
    if config.linear_class == "bitlinear":
        return Sense.DIVIDES
    return Sense.ONLINE if config.quantization_mode == "online" else Sense.MULTIPLIES


def _is_quantized(config: BitNetConfig, module: ModuleInfo, sense: Sense) -> bool:
    """Of what the config does not name, the checkpoint says which is packed; nothing is, in online mode.

    A config without a list leaves the head alone. Source: transformers' `get_modules_to_not_convert`.
    """
    if sense is not Sense.ONLINE and module.stored:
        return "weight_scale" in module.stored
    if module.kind is Kind.LM_HEAD:
        return config.modules_to_not_convert is not None
    return "Linear" in module.classes and module.kind is not Kind.EMBEDDING
