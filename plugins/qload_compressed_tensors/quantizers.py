"""How one tensor is quantized, as a frozen value, and what of it can be computed."""

from dataclasses import dataclass

from qload_compressed_tensors.config import QuantizationArgs, Strategy

_FLOAT_BITS = (4, 6, 8)
_POWERS = ("uint8", "float8_e8m0fnu")
"""The dtypes of scales that are powers of two: as the package finds them, and as the OCP's specification does."""
_SCALE_DTYPES = (None, "float16", "bfloat16", "float32", "float8_e4m3fn")
_ZERO_DTYPES = {False: ("int8", "int16", "int32", "int64"), True: ("float8_e4m3fn",)}
"""The dtypes, of integers and of floats, that zero-points are rounded to without losing any."""


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How one tensor is quantized: `group` columns or `block` rows and columns to a scale.

    With `has_global_scale`, the scales of groups are themselves scaled, by one for the tensor. `scale_dtype` is what
    scales are rounded to.
    """

    bits: int
    is_float: bool
    strategy: Strategy
    symmetric: bool = True
    group: int | None = None
    block: tuple[int, int] | None = None
    dynamic: bool = False
    orders_groups: bool = False
    has_global_scale: bool = False
    scale_dtype: str | None = None

    @property
    def has_powers(self) -> bool:
        """Whether scales are powers of two. Source: compressed-tensors, `should_generate_mx_scales`."""
        is_small = self.is_float and self.bits in _FLOAT_BITS
        return is_small and self.group == 32 and self.scale_dtype in _POWERS

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


def make_quantizer(args: QuantizationArgs) -> Quantizer:
    """What the config says of a weight."""
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
        has_global_scale=strategy is Strategy.TENSOR_GROUP and args.dynamic is not True,
        scale_dtype=args.scale_dtype,
    )


def make_activation_quantizer(args: QuantizationArgs, what: str, static: tuple[Strategy, ...]) -> Quantizer:
    """What the config says of activations, `static` being the strategies that they can have with stored scales.

    A static scale for each group is none of them: the package stores it and cannot compute with it. Raises
    ValueError for what is not supported.
    """
    made = make_quantizer(args)
    kind = "dynamic" if made.dynamic else "static"
    dynamic = (Strategy.TOKEN, Strategy.TENSOR, Strategy.GROUP, Strategy.TENSOR_GROUP)
    if made.strategy not in (dynamic if made.dynamic else static):
        raise ValueError(f"{kind} {what} by {made.strategy} are not supported")
    if made.bits not in _FLOAT_BITS if made.is_float else not 1 <= made.bits <= 16:
        raise ValueError(f"{what} of {made} are not supported")
    if not made.symmetric:
        _check_zero(made, args.zp_dtype, what)
    if made.scale_dtype not in _SCALE_DTYPES and not made.has_powers:
        raise ValueError(f"{what} of {made} with scales in {made.scale_dtype} are not supported")
    return made


def _check_zero(made: Quantizer, dtype: str | None, what: str) -> None:
    if made.strategy is Strategy.TENSOR_GROUP or (made.is_float and made.bits != 8):
        raise ValueError(f"{what} of {made} are not supported")
    if dtype is not None and dtype not in _ZERO_DTYPES[made.is_float]:
        raise ValueError(f"{what} of {made} with zero-points in {dtype} are not supported")
