"""The dtypes that Quark stores values in, and how it packs them.

Source: Quark's `quark/torch/utils/pack.py`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Number:
    """A dtype: its bits, those of its exponent and mantissa if it is a float, and how it lies on disk.

    `unit` is how many values are stored as how many entries of `stored`, a safetensors code. With `split`, the first
    of three bytes holds the high bits of four values, and the others hold the low ones.
    """

    bits: int
    stored: str
    unit: tuple[int, int] = (1, 1)
    signed: bool = True
    exponent: int = 0
    mantissa: int = 0
    split: bool = False

    @property
    def is_float(self) -> bool:
        return self.exponent > 0

    @property
    def is_stream(self) -> bool:
        """Whether integers are packed into bytes, a single zero-point also."""
        return not self.is_float and self.stored == "U8" and self.unit != (1, 1)


NUMBERS = {
    "int2": Number(2, "I32"),
    "uint2": Number(2, "U8", (4, 1), signed=False),
    "int3": Number(3, "U8", (8, 3)),
    "int4": Number(4, "I32", (8, 1)),
    "uint4": Number(4, "I32", (8, 1), signed=False),
    "int8": Number(8, "I8"),
    "uint8": Number(8, "U8", signed=False),
    "fp4": Number(4, "U8", (2, 1), exponent=2, mantissa=1),
    "fp6_e2m3": Number(6, "U8", (4, 3), exponent=2, mantissa=3),
    "fp6_e3m2": Number(6, "U8", (4, 3), exponent=3, mantissa=2),
    "fp8_e4m3": Number(8, "F8_E4M3", exponent=4, mantissa=3),
    "fp8_e5m2": Number(8, "F8_E5M2", exponent=5, mantissa=2),
}
