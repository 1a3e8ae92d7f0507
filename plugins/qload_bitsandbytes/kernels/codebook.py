"""What bitsandbytes' operators for codes of four bits share, and that package, where it is installed."""

import importlib
from abc import abstractmethod
from typing import Any

import torch

from qload.errors import QloadError
from qload.torch.kernels import Case, CodebookWeight, Weight
from qload.torch.kernels.dense import Dequantized
from qload_bitsandbytes.schemes import BLOCK_SIZES, QUANT_TYPES

_PACKAGE = "bitsandbytes"


class Codebook(Dequantized):
    """Holds codes, their table, and scales in float32, as they are, but for what an operator wants otherwise."""

    is_fast = True

    @classmethod
    @abstractmethod
    def refuse_weight(cls, weight: CodebookWeight, case: Case) -> str | None:
        """Why the operator cannot multiply by such a weight, wherever it is installed."""

    @classmethod
    @abstractmethod
    def refuse_package(cls, package: Any) -> str | None:
        """Why the package that is installed has no such operator on this machine."""

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        is_known = isinstance(weight, CodebookWeight) and weight.element in QUANT_TYPES
        return is_known and case.device.type == cls.devices.lower()

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        if not isinstance(weight, CodebookWeight):
            return "it multiplies by codes of four bits"
        if weight.group not in BLOCK_SIZES or weight.columns % weight.group:
            return f"groups of {weight.group} of {weight.columns} columns are not those of bitsandbytes"
        return cls.refuse_weight(weight, case) or cls._refuse_here(weight)

    @classmethod
    def _refuse_here(cls, weight: CodebookWeight) -> str | None:
        package = find_package()
        if isinstance(package, str):
            return package
        if not torch.equal(weight.table.cpu(), package.functional.get_4bit_type(weight.element, "cpu")):
            return f"the table is not that of {weight.element}"
        return cls.refuse_package(package)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Raises QloadError where a kernel is unpickled, and its operator is not there."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        package = find_package()
        fault = package if isinstance(package, str) else self.refuse_package(package)
        if fault is not None:
            raise QloadError(
                "a layer was packed for an operator that is not here",
                where=self.label,
                found=fault,
                remedy="pip install bitsandbytes, or load the checkpoint anew",
            )

    def settle(self, weight: Weight, case: Case) -> None:
        super().settle(weight, case)
        if isinstance(weight, CodebookWeight):
            self.element, self.group = weight.element, weight.group


def find_package() -> Any | str:
    """bitsandbytes, which takes seconds to import, and is only where it may have a kernel; or why it is not there."""
    try:
        package = importlib.import_module(_PACKAGE)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == _PACKAGE:
            return f"{_PACKAGE} is not installed"
        # It looks for compiled libraries, and raises what it will.
        return f"importing {_PACKAGE} raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if not hasattr(getattr(package, "functional", None), "get_4bit_type"):
        return f"what is installed as {_PACKAGE} has no 4-bit types"
    return package
