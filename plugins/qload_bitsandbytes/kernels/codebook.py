"""What bitsandbytes' operators for codes of four bits share, and that package, where it is installed."""

import importlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qload.torch.kernels import Blank, Case, CodebookWeight, Inputs, Kernel, Weight
from qload_bitsandbytes.schemes import BLOCK_SIZES, QUANT_TYPES


class Codebook(Kernel):
    """Holds codes, their table, and scales in float32, beside what an operator wants of them."""

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

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        groups = as_codes(weight).scale.shape[1]
        return {
            "values": Blank((weight.rows, weight.columns // 2), torch.uint8),
            "scale": Blank((weight.rows, groups), torch.float32),
            "table": Blank((16,), torch.float32),
        }

    @classmethod
    def adopt(cls, weight: Weight) -> Mapping[str, Tensor]:
        return {name: each.detach() for name, each in _list_held(weight).items() if each.is_contiguous()}

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        for name, each in _list_held(weight).items():
            if name in into and into[name].data_ptr() != each.data_ptr():
                into[name].copy_(each)

    def settle(self, weight: Weight, case: Case) -> None:
        blank = weight.values.new_empty(0)
        self._form = replace(as_codes(weight), values=blank, scale=blank, table=blank, inputs=Inputs())

    def restore(self, held: Mapping[str, Tensor]) -> CodebookWeight:
        return replace(self._form, values=held["values"], scale=held["scale"], table=held["table"])


def find_package() -> Any | str:
    """bitsandbytes, which takes seconds to import, and is only where it may have a kernel; or why it is not there."""
    try:
        return importlib.import_module("bitsandbytes")
    except ModuleNotFoundError:
        return "bitsandbytes is not installed"
    except Exception as error:
        # It looks for compiled libraries, and raises what it will.
        return f"importing bitsandbytes raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def as_codes(weight: Weight) -> CodebookWeight:
    """Raises TypeError for other weights, which are refused."""
    if not isinstance(weight, CodebookWeight):
        raise TypeError(f"{weight.label} is no weight of codes")
    return weight


def _list_held(weight: Weight) -> dict[str, Tensor]:
    weight = as_codes(weight)
    return {"values": weight.values, "scale": weight.scale, "table": weight.table}
