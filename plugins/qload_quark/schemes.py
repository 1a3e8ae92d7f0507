"""What Quark does to a module, as a frozen value."""

from dataclasses import dataclass, replace
from enum import StrEnum

from qload_quark.config import LayerConfig, TensorSpec
from qload_quark.numbers import NUMBERS, Number

MX = "mx"
MX_ELEMENTS = ("fp4", "fp6_e2m3", "fp6_e3m2")
EXPONENT = "exponent"
"""How the scales of the dtype `mx` are stored: as e8m0, with nothing added."""
E8M0 = "e8m0"
SCALE_FORMATS = {None: None, "float32": None, "e4m3": None, E8M0: E8M0, "e5m3": "e5m3"}
"""How scales are stored that are no plain floats, by scale_format. `e4m3` is a rounding: the scales' own spec says
whether they are stored so."""


class Extent(StrEnum):
    """What one scale serves."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    GROUP = "group"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How one tensor is quantized: `group` columns or `block` rows and columns to a scale.

    `by_columns` is of channels: a scale for each input feature, not for each output. `scales` is how the scales are
    stored, None for plain floats; `mode` how a power of two is chosen for one.
    """

    dtype: str
    extent: Extent
    by_columns: bool = False
    group: int | None = None
    block: tuple[int, int] | None = None
    symmetric: bool = True
    dynamic: bool = False
    scales: str | None = None
    mode: str = "even"
    has_float_zero: bool = False

    @property
    def number(self) -> Number:
        number = NUMBERS[self.dtype]
        return replace(number, split=True) if self.scales == EXPONENT and number.bits == 6 else number

    def __str__(self) -> str:
        size = self.group or (self.block and "{}x{}".format(*self.block)) or ("of inputs" if self.by_columns else "")
        extent = "token" if self.dynamic and self.extent is Extent.CHANNEL else str(self.extent)
        words = [self.dtype, extent, str(size), self.scales or ""]
        words += [] if self.symmetric or self.number.is_float else ["asymmetric"]
        return " ".join(word for word in words if word)


@dataclass(frozen=True, slots=True)
class QuarkScheme:
    """What is done to the weights, inputs and outputs of a module; `cache` to outputs once they are in a cache.

    With `scales_scaled`, the weights' scales are themselves fp8, with a scale for the tensor. With `progressive`,
    the weights were rounded to fp8 first, by a scale for the tensor. `inputs_scaled` is the first, of inputs.
    `reorder` is AWQ's order of the values in a word.
    """

    weights: Quantizer | None
    inputs: Quantizer | None = None
    outputs: Quantizer | None = None
    cache: Quantizer | None = None
    scales_scaled: bool = False
    progressive: bool = False
    inputs_scaled: bool = False
    reorder: bool = True

    def __str__(self) -> str:
        words = "16 bits" if self.weights is None else str(self.weights)
        words += ", scaled scales" * self.scales_scaled + " after fp8" * self.progressive
        for what, quantizer in (("inputs", self.inputs), ("outputs", self.outputs), ("cache", self.cache)):
            if quantizer is not None:
                words += f", {what} {_describe(quantizer)}"
        return words


@dataclass(frozen=True, slots=True)
class CacheScheme:
    """How keys and values are quantized, whose scales lie beside the projections that make them."""

    keys: Quantizer | None
    values: Quantizer | None

    def __str__(self) -> str:
        both = {f"kv cache {_describe(each)}" for each in (self.keys, self.values) if each is not None}
        return ", ".join(sorted(both))


def _describe(quantizer: Quantizer) -> str:
    return f"{'dynamic' if quantizer.dynamic else 'static'} {quantizer}"


Scheme = QuarkScheme | CacheScheme


def make_scheme(layer: LayerConfig, *, reorder: bool, feeds_cache: bool) -> QuarkScheme | None:
    """The scheme of a module with that config, None where nothing of it is quantized.

    Raises ValueError for what is not supported.
    """
    if not (layer.weight or layer.input_tensors or layer.output_tensors):
        return None
    if layer.bias:
        raise ValueError("the bias is quantized, which is not supported")
    weights, scales_scaled, progressive = _read_weights(layer.weight)
    inputs, inputs_scaled = _read_inputs(layer.input_tensors)
    outputs = _read_outputs(layer.output_tensors)
    outputs, cache = (None, outputs) if feeds_cache else (outputs, None)
    return QuarkScheme(weights, inputs, outputs, cache, scales_scaled, progressive, inputs_scaled, reorder)


def make_cache_scheme(keys: LayerConfig | None, values: LayerConfig | None) -> CacheScheme | None:
    """The scheme of an attention by the configs of its projections. Raises ValueError for what is not supported."""
    made = [_read_outputs(layer.output_tensors) if layer is not None else None for layer in (keys, values)]
    return CacheScheme(*made) if any(made) else None


def _read_weights(specs: tuple[TensorSpec, ...]) -> tuple[Quantizer | None, bool, bool]:
    """The quantizer of the weights, and whether its scales, or the weights before it, were quantized to fp8."""
    if not specs:
        return None, False, False
    if any(spec.is_dynamic for spec in specs):
        raise ValueError("weights that are quantized while computing are not supported")
    first, *others = map(_quantizer, specs)
    _check_weights(others[0] if others and not specs[1].is_scale_quant else first)
    if not others:
        return first, False, False
    if len(others) == 1 and specs[1].is_scale_quant and _scales_by_tensor(others[0]):
        if first.extent is not Extent.GROUP or not first.number.is_float or first.scales is not None:
            raise ValueError(f"scaled scales of {first} are not supported")
        return first, True, False
    if len(others) == 1 and not specs[1].is_scale_quant and _scales_by_tensor(first) and not others[0].number.is_float:
        return others[0], False, True
    raise ValueError(f"weights in the stages {', then '.join(map(str, (first, *others)))} are not supported")


def _scales_by_tensor(quantizer: Quantizer) -> bool:
    return quantizer.dtype == "fp8_e4m3" and quantizer.extent is Extent.TENSOR and not quantizer.dynamic


def _read_inputs(specs: tuple[TensorSpec, ...]) -> tuple[Quantizer | None, bool]:
    if not specs:
        return None, False
    if specs[0].qscheme == "per_channel" and specs[0].ch_axis not in (0, 1, -2, None):
        raise ValueError(f"inputs by features (axis {specs[0].ch_axis}) are not supported")
    first, *others = (replace(_quantizer(spec), by_columns=False) for spec in specs)
    first = replace(first, dynamic=first.dynamic or specs[0].dtype == MX)
    if others:
        nvfp4 = first.dtype == "fp4" and first.extent is Extent.GROUP and first.dynamic and first.scales is None
        if len(others) > 1 or not (nvfp4 and specs[1].is_scale_quant and _scales_by_tensor(others[0])):
            raise ValueError(f"inputs in the stages {', then '.join(map(str, (first, *others)))} are not supported")
    _check_inputs(first)
    return first, bool(others)


def _read_outputs(specs: tuple[TensorSpec, ...]) -> Quantizer | None:
    if not specs:
        return None
    quantizer = _quantizer(specs[0])
    if len(specs) > 1 or quantizer.extent is not Extent.TENSOR:
        raise ValueError(f"outputs of {quantizer} are not supported")
    _check_inputs(quantizer)
    return quantizer


def _quantizer(spec: TensorSpec) -> Quantizer:
    if spec.scale_format not in SCALE_FORMATS:
        raise ValueError(f"scale_format {spec.scale_format!r} is not one of e8m0, e5m3, e4m3, float32")
    return _make_quantizer(_spell_out(spec) if spec.dtype == MX else spec)


def _make_quantizer(spec: TensorSpec) -> Quantizer:
    if spec.dtype not in NUMBERS:
        raise ValueError(f"dtype {spec.dtype!r} is not one of {', '.join(NUMBERS)}")
    if spec.qscheme is None:
        raise ValueError("a tensor is quantized without a qscheme")
    extent = Extent(spec.qscheme.removeprefix("per_"))
    if extent is Extent.GROUP and (spec.group_size or 0) <= 0:
        raise ValueError(f"per_group needs a positive group_size, not {spec.group_size}")
    if extent is Extent.GROUP and spec.ch_axis not in (1, -1, None):
        raise ValueError(f"groups along axis {spec.ch_axis} are not supported")
    if extent is Extent.BLOCK and spec.block_size is None:
        raise ValueError("per_block needs a block_size")
    return Quantizer(
        spec.dtype,
        extent,
        by_columns=extent is Extent.CHANNEL and spec.ch_axis in (1, -1),
        group=spec.group_size if extent is Extent.GROUP else None,
        block=spec.block_size if extent is Extent.BLOCK else None,
        symmetric=spec.symmetric is not False,
        dynamic=bool(spec.is_dynamic),
        scales=SCALE_FORMATS.get(spec.scale_format, spec.scale_format),
        mode=spec.scale_calculation_mode or "even",
        has_float_zero=spec.zero_point_type == "float32",
    )


def _spell_out(spec: TensorSpec) -> TensorSpec:
    """Microscaled floats that are named by one dtype. Source of what is stored: `apply_export_state_dict_mappings`."""
    if spec.mx_element_dtype not in MX_ELEMENTS:
        raise ValueError(f"mx_element_dtype {spec.mx_element_dtype!r} is not one of {', '.join(MX_ELEMENTS)}")
    changes = {"dtype": spec.mx_element_dtype, "qscheme": "per_group", "scale_format": EXPONENT}
    return spec.model_copy(update=changes)


def _check_weights(weights: Quantizer) -> None:
    number, extent = weights.number, weights.extent
    if number.is_float and number.bits < 8 and extent is not Extent.GROUP:
        raise ValueError(f"weights of {weights} are not supported")
    if extent is Extent.BLOCK and number.stored not in ("F8_E4M3", "F8_E5M2"):
        raise ValueError(f"weights of {weights} are not supported")
    if extent is Extent.TENSOR and number.is_stream:
        raise ValueError(f"weights of {weights} cannot be packed")
    if weights.scales is not None and not (number.is_float and extent is Extent.GROUP):
        raise ValueError(f"weights of {weights} are not supported")


def _check_inputs(inputs: Quantizer) -> None:
    number = inputs.number
    if not inputs.dynamic and inputs.extent is not Extent.TENSOR:
        raise ValueError(f"static inputs of {inputs} are not supported")
    scaled_apart = inputs.scales is not None and not (number.is_float and inputs.extent is Extent.GROUP)
    if inputs.extent is Extent.BLOCK or scaled_apart:
        raise ValueError(f"inputs of {inputs} are not supported")
    if inputs.scales == "e5m3" or (inputs.dynamic and inputs.symmetric and not number.is_float and not number.signed):
        raise ValueError(f"dynamic inputs of {inputs} are not supported")
