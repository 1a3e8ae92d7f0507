"""What bitsandbytes' operators for codes of four bits share, and that package, where it is installed."""

import importlib
from abc import abstractmethod
from typing import Any

import torch

from qload.torch.kernels import Case, CodebookWeight, Weight
from qload.torch.kernels.dense import Dequantized
from qload_bitsandbytes.schemes import BLOCK_SIZES, QUANT_TYPES


class Codebook(Dequantized):
    """Holds codes, their table, and scales in float32, as they are, but for what an operator wants otherwise."""

    is_fast = True

    @classmethod
    @abstractmethod
    def refuse_here(cls, weight: CodebookWeight, case: Case, package: Any) -> str | None:
        """Why the operator of the package, which is installed, cannot multiply by the weight."""

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
        package = find_package()
        if isinstance(package, str):
            return package
        if not torch.equal(weight.table.cpu(), package.functional.get_4bit_type(weight.element, "cpu")):
            return f"the table is not that of {weight.element}"
        return cls.refuse_here(weight, case, package)

    def settle(self, weight: Weight, case: Case) -> None:
        super().settle(weight, case)
        if isinstance(weight, CodebookWeight):
            self.element, self.group = weight.element, weight.group


def find_package() -> Any | str:
    """bitsandbytes, which takes seconds to import, and is only where it may have a kernel; or why it is not there."""
    try:
        return importlib.import_module("bitsandbytes")
    except ModuleNotFoundError:
        return "bitsandbytes is not installed"
    except Exception as error:
        # It looks for compiled libraries, and raises what it will.
        return f"importing bitsandbytes raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
