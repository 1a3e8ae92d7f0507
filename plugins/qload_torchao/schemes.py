"""What is done to a module, as a frozen value, whether a tensor's metadata or the config says it."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

from qload_torchao.values import ROW, TENSOR, Block, read_word


class Storage(StrEnum):
    """How values are stored: the tensor classes that torchao can save as safetensors, two kernels' own aside."""

    INT8 = "Int8Tensor"
    INTX = "IntxUnpackedToInt8Tensor"
    INT4 = "Int4Tensor"
    FLOAT8 = "Float8Tensor"
    MX = "MXTensor"
    NVFP4 = "NVFP4Tensor"


REQUIRED = frozenset({"qdata", "scale"})
ZERO_POINT, PRE_SCALE = "zero_point", "act_pre_scale"
INPUT_SCALE, INPUT_ZERO_POINT = "act_quant_scale", "act_quant_zero_point"
GLOBAL_SCALE, INPUT_GLOBAL_SCALE = "per_tensor_scale", "act_per_tensor_scale"
OPTIONAL = {
    Storage.INT8: frozenset({ZERO_POINT, PRE_SCALE, INPUT_SCALE, INPUT_ZERO_POINT}),
    Storage.INTX: frozenset({ZERO_POINT}),
    Storage.INT4: frozenset({ZERO_POINT, PRE_SCALE}),
    Storage.FLOAT8: frozenset(),
    Storage.MX: frozenset(),
    Storage.NVFP4: frozenset({GLOBAL_SCALE, INPUT_GLOBAL_SCALE}),
}
"""The tensors that each may have besides its values and their scales."""

INT_DTYPES = tuple(f"int{bits}" for bits in range(1, 9))
FP4 = "float4_e2m1fn_x2"
FLOAT8 = "float8"
"""Values of any dtype of eight-bit floats: the tensor's own says which."""
FLOAT8_DTYPES = ("float8_e4m3fn", "float8_e5m2")
FP6_BITS = {"fp6_e2m3": (2, 3), "fp6_e3m2": (3, 2)}
"""The bits of exponent and mantissa of six-bit floats, which are stored in a byte each."""
MX_ELEMENTS = (*FLOAT8_DTYPES, *FP6_BITS, FP4)

_NAMES = {FLOAT8: "fp8", "float8_e4m3fn": "fp8", "float8_e5m2": "fp8 e5m2", FP4: "fp4"}


@dataclass(frozen=True, slots=True)
class Inputs:
    """How inputs are quantized, with scales of their own for each `block` of them, unless those are `static`.

    `bounds` are the least and greatest magnitude that a scale is made for, `rounding` is how scales become powers
    of two. With `scaled_by_tensor`, scales of blocks are themselves scaled by one of the whole input.
    """

    element: str
    block: Block = ROW
    symmetric: bool = True
    reduced: bool = False
    bounds: tuple[float | None, float | None] = (None, None)
    rounding: str = ""
    static: bool = False
    scaled_by_tensor: bool = False

    def __str__(self) -> str:
        extent = {TENSOR: "tensor", ROW: "token"}.get(self.block, f"group {self.block[1]}")
        words = ["static" if self.static else "dynamic", _NAMES.get(self.element, self.element), extent]
        return " ".join([*words, *([] if self.symmetric else ["asymmetric"])])


@dataclass(frozen=True, slots=True)
class Making:
    """What a config says of how a weight is quantized, and no stored tensor shows."""

    mapping: str = "SYMMETRIC"
    algorithm: str = "AFFINE"
    values: str = FLOAT8_DTYPES[0]
    scale: str | None = None
    reduced: bool = False


@dataclass(frozen=True, slots=True)
class TorchaoScheme:
    """How a weight is stored: its values' dtype, the block of a scale, the further tensors, the order of scales.

    `dtype` is what the weight was quantized from, `making` how a weight that is not yet would be.
    """

    storage: Storage
    element: str
    block: Block
    tensors: frozenset[str] = frozenset()
    inputs: Inputs | None = None
    swizzled: bool = False
    dtype: str = "bfloat16"
    making: Making = Making()

    def __str__(self) -> str:
        weights = f"{self._element} {self._extent}"
        return weights if self.inputs is None else f"{weights}, inputs {self.inputs}"

    @property
    def _element(self) -> str:
        prefix = "nv" if self.storage is Storage.NVFP4 else "mx" if self.storage is Storage.MX else ""
        return prefix + _NAMES.get(self.element, self.element)

    @property
    def _extent(self) -> str:
        rows, columns = self.block
        if self.block in (TENSOR, ROW):
            return "tensor" if self.block == TENSOR else "channel"
        return f"group {columns}" if rows == 1 else f"block {rows or 'all'}x{columns or 'all'}"


def settle(scheme: TorchaoScheme, tensors: frozenset[str]) -> TorchaoScheme:
    """The scheme of a weight that is stored with these further tensors: scales of inputs make those static.

    Raises ValueError for tensors that make no sense of it.
    """
    inputs, storage = scheme.inputs, scheme.storage
    unknown = sorted(tensors - OPTIONAL[storage])
    if unknown:
        raise ValueError(f"the tensor {unknown[0][:60]!r} of a {storage} is not known")
    if storage is Storage.INT4 and ZERO_POINT not in tensors:
        raise ValueError(f"a {storage} has no zero-points")
    if INPUT_SCALE in tensors and (inputs is None or inputs.block != TENSOR):
        raise ValueError("a scale of inputs is stored, and they are not quantized by tensor")
    if inputs is not None and tensors & {INPUT_SCALE, INPUT_GLOBAL_SCALE} and not inputs.scaled_by_tensor:
        inputs = replace(inputs, static=True)
    return replace(scheme, tensors=tensors, inputs=inputs)


def check_element(value: object, default: str, allowed: Collection[str]) -> str:
    """The dtype of values that is written. Raises ValueError for one that is not among the allowed."""
    element = read_word(value, default)
    if element not in allowed:
        raise ValueError(f"values of {element[:60]!r} are not one of {', '.join(allowed)}")
    return element
