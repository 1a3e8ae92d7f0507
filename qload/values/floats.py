"""Floats as integers: which bits say that one is no finite number, and what value the others have.

Sources: IEEE 754; the OCP 8-bit Floating Point Specification (E4M3, E5M2) and Microscaling Formats (E8M0); for the
FNUZ ones, which have one NaN in place of the negative zero, "8-bit Numerical Formats for Deep Neural Networks".
"""

import math
from dataclasses import dataclass

_GREATEST = 100


@dataclass(frozen=True, slots=True)
class FloatBits:
    """A dtype whose values are read as signed integers of `nbytes` bytes.

    What is no finite number has `mark` in the bits of `mask`. Without a sign, all bits are the exponent.
    """

    nbytes: int
    fraction: int
    bias: int
    mask: int
    mark: int
    signed: bool = True

    @property
    def least(self) -> int:
        """The least integer, which is the negative zero."""
        return -1 << (8 * self.nbytes - 1)

    @property
    def most(self) -> int | None:
        """The bits of 2^100, from which on sizes are beyond any use; None where there are none so great."""
        bits = (_GREATEST + self.bias) << self.fraction
        return bits if self.signed and bits < self.mask & ~self.least else None

    @property
    def one(self) -> int:
        """The bits of 1."""
        return self.bias << self.fraction

    def decode(self, bits: int) -> float:
        """The value of one, in which all that is neither finite nor infinite is NaN."""
        if not self.signed:
            return math.nan if bits == self.mark else 2.0 ** ((bits & 0xFF) - self.bias)
        size = bits & ~self.least
        exponent, fraction = size >> self.fraction, size & ((1 << self.fraction) - 1)
        if bits & self.mask == self.mark:
            # Where bits of the fraction tell a NaN, there is no infinity.
            value = math.nan if fraction or self.mask & ((1 << self.fraction) - 1) else math.inf
        else:
            whole = fraction if exponent == 0 else fraction | 1 << self.fraction
            value = math.ldexp(whole, max(exponent, 1) - self.bias - self.fraction)
        return -value if bits < 0 else value


def _ieee(nbytes: int, fraction: int, bias: int) -> FloatBits:
    """Infinities and NaNs have all bits of the exponent, which lies between the fraction and the sign."""
    exponent = (1 << (8 * nbytes - 1)) - (1 << fraction)
    return FloatBits(nbytes, fraction, bias, exponent, exponent)


FLOAT_BITS: dict[str, FloatBits] = {
    "F64": _ieee(8, 52, 1023),
    "F32": _ieee(4, 23, 127),
    "F16": _ieee(2, 10, 15),
    "BF16": _ieee(2, 7, 127),
    "F8_E5M2": _ieee(1, 2, 15),
    "F8_E4M3": FloatBits(1, 3, 7, 0x7F, 0x7F),
    "F8_E4M3FNUZ": FloatBits(1, 3, 8, -1, -0x80),
    "F8_E5M2FNUZ": FloatBits(1, 2, 16, -1, -0x80),
    "F8_E8M0": FloatBits(1, 0, 127, -1, -1, signed=False),
}
"""By the codes of safetensors."""
