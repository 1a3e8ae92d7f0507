"""bitsandbytes' operator for CUDA."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qload.torch.activations import Agree
from qload.torch.kernels import Case, CodebookWeight, Inputs
from qload_bitsandbytes.kernels.codebook import Codebook


class CudaCodebook(Codebook):
    """Multiplies by codes as they are stored, or dequantizes them, whichever bitsandbytes knows to be quicker."""

    label = "bitsandbytes::gemm_4bit"
    devices = "CUDA"
    precision = "each weight is rounded to x's dtype, sums are of float32"

    @classmethod
    def refuse_weight(cls, weight: CodebookWeight, case: Case) -> str | None:
        return None

    @classmethod
    def refuse_package(cls, package: Any) -> str | None:
        has_operator = hasattr(torch.ops.bitsandbytes, "gemm_4bit")
        return None if has_operator else f"bitsandbytes {package.__version__} has no such operator: 0.50 has"

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        return len(x) == 0

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        shape, rounded = (self.rows, self.columns), inputs.round(x, agree)
        codes, scale = held["values"].view(-1, 1), held["scale"].flatten()
        y: Tensor = torch.ops.bitsandbytes.gemm_4bit(rounded, codes, shape, scale, self.group, self.element)
        return y
