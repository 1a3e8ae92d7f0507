"""Kernels that multiply by quantized weights, and the table from which each layer gets one."""

from qload.torch.kernels.inputs import Inputs, Rounding
from qload.torch.kernels.kernel import Blank, Case, Kernel, Kernels, Make
from qload.torch.kernels.table import Choice, choose_kernel, find_kernels
from qload.torch.kernels.weights import FloatWeight, IntegerWeight, Weight

__all__ = [
    "Blank",
    "Case",
    "Choice",
    "FloatWeight",
    "Inputs",
    "IntegerWeight",
    "Kernel",
    "Kernels",
    "Make",
    "Rounding",
    "Weight",
    "choose_kernel",
    "find_kernels",
]
