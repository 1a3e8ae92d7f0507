"""Kernels that multiply by quantized weights, and the table from which each layer gets one."""

from qload.torch.kernels.groups import Groups
from qload.torch.kernels.inputs import Inputs, Rounding, ScaledRounding
from qload.torch.kernels.kernel import Blank, Case, Kernel, Kernels, Make
from qload.torch.kernels.table import Choice, Table, choose_kernel, find_kernels
from qload.torch.kernels.weights import E2M1, CodebookWeight, FloatWeight, IntegerWeight, Weight, name_element

__all__ = [
    "E2M1",
    "Blank",
    "Case",
    "Choice",
    "CodebookWeight",
    "FloatWeight",
    "Groups",
    "Inputs",
    "IntegerWeight",
    "Kernel",
    "Kernels",
    "Make",
    "Rounding",
    "ScaledRounding",
    "Table",
    "Weight",
    "choose_kernel",
    "find_kernels",
    "name_element",
]
