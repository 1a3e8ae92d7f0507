"""Weights as kernels know them, whatever method stores them: integers, small floats or codes, and their scales."""

from qload.torch.kernels.weights.codebook import CodebookWeight
from qload.torch.kernels.weights.fields import list_tensors
from qload.torch.kernels.weights.floats import E2M1, FloatWeight, name_element
from qload.torch.kernels.weights.integer import IntegerWeight

Weight = IntegerWeight | FloatWeight | CodebookWeight

__all__ = [
    "E2M1",
    "CodebookWeight",
    "FloatWeight",
    "IntegerWeight",
    "Weight",
    "list_tensors",
    "name_element",
]
