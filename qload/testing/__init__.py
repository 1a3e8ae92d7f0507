"""The contract kit: what the author of a method runs to see whether the core can rely on it."""

from qload.testing.contract import ContractError, check_method
from qload.testing.tensors import make_tensors

__all__ = ["ContractError", "check_method", "make_tensors"]
