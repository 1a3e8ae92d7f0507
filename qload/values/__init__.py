"""What only the numbers in a tensor show, looked for by bits: the same for what has them, torch's tensors or others."""

from qload.values.choice import find_unit, find_width, make_watches
from qload.values.floats import FLOAT_BITS, FloatBits
from qload.values.watches import Bits, Watch
from qload.values.weights import ConstantWatch, WeightWatch, ZeroWatch

__all__ = [
    "FLOAT_BITS",
    "Bits",
    "ConstantWatch",
    "FloatBits",
    "Watch",
    "WeightWatch",
    "ZeroWatch",
    "find_unit",
    "find_width",
    "make_watches",
]
