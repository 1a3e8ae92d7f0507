"""What a config group does to a module, as a frozen value, and the formats in which it can be stored."""

from dataclasses import dataclass

from qload_compressed_tensors.config import QuantizationArgs, QuantizationGroup, Strategy

PACKED = "pack-quantized"
PLAIN_FORMATS = ("int-quantized", "float-quantized", "naive-quantized")
NVFP4 = "nvfp4-pack-quantized"
MXFP4 = "mxfp4-pack-quantized"
MXFP8 = "mxfp8-quantized"
SMALL_FLOATS = {NVFP4: (4, Strategy.TENSOR_GROUP, 16), MXFP4: (4, Strategy.GROUP, 32), MXFP8: (8, Strategy.GROUP, 32)}
"""The formats of microscaled floats: what each fixes of bits, strategy and group size."""
FORMATS = (PACKED, *PLAIN_FORMATS, *SMALL_FLOATS)


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How one tensor is quantized: `group` columns or `block` rows and columns to a scale."""

    bits: int
    is_float: bool
    strategy: Strategy
    symmetric: bool = True
    group: int | None = None
    block: tuple[int, int] | None = None
    dynamic: bool = False
    orders_groups: bool = False

    @property
    def has_global_scale(self) -> bool:
        """Whether the scales of groups are themselves scaled, by one for the tensor."""
        return self.strategy is Strategy.TENSOR_GROUP

    @property
    def is_plain_float(self) -> bool:
        """Whether values are floats whose scales are stored, symmetric and in the columns' order."""
        return self.is_float and self.symmetric and not self.dynamic and not self.orders_groups

    def __str__(self) -> str:
        extent = self.group or (self.block and "{}x{}".format(*self.block))
        words = [f"{'fp' if self.is_float else 'int'}{self.bits}", str(self.strategy)]
        words += [str(extent)] if extent else []
        words += ["act-order"] if self.orders_groups else []
        return " ".join(words + ([] if self.symmetric else ["asymmetric"]))


@dataclass(frozen=True, slots=True)
class CompressedScheme:
    """Weights in one of the formats, and what the inputs are quantized with, if they are."""

    format: str
    weights: Quantizer
    inputs: Quantizer | None = None

    def __str__(self) -> str:
        if self.inputs is None:
            return str(self.weights)
        return f"{self.weights}, inputs {'dynamic' if self.inputs.dynamic else 'static'} {self.inputs}"


@dataclass(frozen=True, slots=True)
class CacheScheme:
    """Static scales of an attention's keys and values."""

    bits: int

    def __str__(self) -> str:
        return f"kv cache fp{self.bits}"


def make_scheme(group: QuantizationGroup, format: str | None) -> CompressedScheme | None:
    """The scheme of a group, stored in its own format or the config's.

    Raises ValueError for what is not supported.
    """
    if group.weights is None:
        if group.input_activations is not None:
            raise ValueError("activations are quantized and weights are not")
        return None
    if group.output_activations is not None:
        raise ValueError("output activations are quantized, which is not supported")
    weights = _quantizer(group.weights)
    inputs = None if group.input_activations is None else _quantizer(group.input_activations)
    stored_as = _format(group.format or format, weights, inputs)
    _check_weights(weights, stored_as)
    if inputs is not None:
        _check_inputs(inputs)
    return CompressedScheme(stored_as, weights, inputs)


def make_cache_scheme(args: QuantizationArgs) -> CacheScheme:
    """The scheme of a KV cache. Raises ValueError unless it has static scales for whole tensors."""
    if args.dynamic or args.effective_strategy is not Strategy.TENSOR or not args.symmetric:
        raise ValueError("a KV cache with other than static symmetric scales by tensor is not supported")
    return CacheScheme(args.num_bits)


def _quantizer(args: QuantizationArgs) -> Quantizer:
    strategy = args.effective_strategy
    return Quantizer(
        bits=args.num_bits,
        is_float=args.type == "float",
        strategy=strategy,
        symmetric=args.symmetric,
        group=args.group_size if strategy in (Strategy.GROUP, Strategy.TENSOR_GROUP) else None,
        block=args.block_structure,
        dynamic=bool(args.dynamic),
        orders_groups=args.orders_groups,
    )


def _format(written: str | None, weights: Quantizer, inputs: Quantizer | None) -> str:
    """The format that is written, or the one that the package takes where none is."""
    if written not in (None, "mixed-precision"):
        if written not in FORMATS:
            raise ValueError(f"format {written!r} is not one of {', '.join(FORMATS)}")
        return written
    if weights.is_float and weights.bits == 4:
        return NVFP4 if weights.strategy is Strategy.TENSOR_GROUP else MXFP4
    if weights.is_float:
        return "float-quantized"
    return PACKED if inputs is None else "int-quantized"


def _check_weights(weights: Quantizer, stored_as: str) -> None:
    if stored_as in SMALL_FLOATS:
        if (weights.bits, weights.strategy, weights.group) != SMALL_FLOATS[stored_as] or not weights.is_plain_float:
            raise ValueError(f"{weights} cannot be stored as {stored_as}")
        return
    if weights.dynamic or weights.strategy in (Strategy.TOKEN, Strategy.TENSOR_GROUP, Strategy.ATTN_HEAD):
        raise ValueError(f"weights by {weights.strategy} are not supported")
    if stored_as == PACKED and (weights.is_float or not 1 <= weights.bits <= 8):
        raise ValueError(f"{weights} cannot be stored as {PACKED}")
    if weights.block is not None and (stored_as == PACKED or not weights.symmetric):
        raise ValueError(f"{weights} cannot be stored as {stored_as}")
    if stored_as != PACKED and weights.bits > 8:
        raise ValueError(f"{weights.bits}-bit weights are not supported")
    if weights.is_float and weights.bits != 8:
        raise ValueError(f"{weights.bits}-bit floats cannot be stored as {stored_as}")


def _check_inputs(inputs: Quantizer) -> None:
    if inputs.has_global_scale:
        if (inputs.bits, inputs.is_float, inputs.dynamic, inputs.symmetric) != (4, True, True, True):
            raise ValueError(f"inputs of {inputs} are not supported")
        return
    if inputs.bits != 8 and (inputs.is_float or not 2 <= inputs.bits <= 8):
        raise ValueError(f"inputs of {inputs} are not supported")
    dynamic = (Strategy.TOKEN, Strategy.TENSOR, Strategy.GROUP)
    if inputs.strategy not in (dynamic if inputs.dynamic else (Strategy.TENSOR,)):
        kind = "dynamic" if inputs.dynamic else "static"
        raise ValueError(f"{kind} inputs by {inputs.strategy} are not supported")
