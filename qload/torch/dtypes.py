"""Storage dtype codes as torch dtypes, and empty tensors of them."""

import math

import torch
from torch import Tensor

from qload.dtypes import CONFIG_NAMES
from qload.errors import QloadError

_TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_CODES = {dtype: code for code, dtype in _TORCH.items()}
_NAN_BYTE = 0x7F
"""NaN in the 8-bit float formats that have one in this place; 0x80 in the FNUZ ones."""


def torch_dtype(code: str) -> torch.dtype:
    """The torch dtype of a storage code. Raises QloadError for one that torch lacks."""
    if code not in _TORCH:
        raise QloadError("torch has no such dtype", found=code, expected=", ".join(_TORCH))
    return _TORCH[code]


def dtype_code(dtype: torch.dtype | str) -> str:
    """The storage code of a torch dtype, of its name in a config, or of a code itself."""
    if isinstance(dtype, torch.dtype):
        code = _CODES.get(dtype, "")
    else:
        name = str(dtype).removeprefix("torch.")
        code = CONFIG_NAMES.get(name, name)
    if code not in _TORCH:
        raise QloadError("no checkpoint stores that dtype", found=repr(dtype), expected=", ".join(CONFIG_NAMES))
    return code


def make_unwritten(like: Tensor, device: torch.device) -> Tensor:
    """A tensor of a like shape and dtype that holds what cannot pass for data: NaN, or the least integer."""
    if like.is_floating_point():
        return make_filled(tuple(like.shape), dtype_code(like.dtype), math.nan, device)
    if like.is_complex():
        return torch.full(like.shape, math.nan, dtype=like.dtype, device=device)
    least = False if like.dtype == torch.bool else torch.iinfo(like.dtype).min
    return torch.full(like.shape, least, dtype=like.dtype, device=device)


def is_written(tensor: Tensor) -> bool:
    """Whether nothing is left in a tensor of what `make_unwritten` put there; a boolean one cannot say."""
    if tensor.is_floating_point() or tensor.is_complex():
        return not bool(torch.isnan(tensor).any())
    return tensor.dtype in (torch.bool, torch.uint8) or not bool((tensor == torch.iinfo(tensor.dtype).min).any())


def make_filled(shape: tuple[int, ...], code: str, fill: float, device: torch.device) -> Tensor:
    """A tensor of `fill`, where NaN stands for whatever cannot pass for data in that dtype."""
    dtype = torch_dtype(code)
    if not math.isnan(fill):
        return torch.full(shape, int(fill), dtype=dtype, device=device)
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    if dtype.itemsize > 1:
        return torch.full(shape, fill, dtype=dtype, device=device)
    byte = 0x80 if code.endswith("FNUZ") else 0xFF if code == "F8_E8M0" else _NAN_BYTE
    return torch.full(shape, byte, dtype=torch.uint8, device=device).view(dtype)
