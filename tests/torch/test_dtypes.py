"""Dtype codes, and tensors filled with what cannot pass for data."""

import pytest
import torch

from qload.dtypes import BITS, FLOATS, storage_bytes
from qload.errors import QloadError
from qload.torch.dtypes import _TORCH, dtype_code, make_filled, torch_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("code", sorted(_TORCH))
def test_codes_are_as_wide_as_torchs_dtypes(code: str) -> None:
    assert torch_dtype(code).itemsize * 8 == BITS[code]
    assert dtype_code(torch_dtype(code)) == code


@pytest.mark.parametrize(
    ("name", "code"), [("bfloat16", "BF16"), ("torch.float16", "F16"), ("half", "F16"), ("F32", "F32")]
)
def test_names_that_configs_use(name: str, code: str) -> None:
    assert dtype_code(name) == code


@pytest.mark.parametrize("name", ["float33", "", "F4"])
def test_an_unknown_dtype_is_our_error(name: str) -> None:
    with pytest.raises(QloadError, match="no checkpoint stores that dtype"):
        torch_dtype(dtype_code(name))


@pytest.mark.parametrize("code", [code for code, dtype in _TORCH.items() if dtype.is_floating_point])
def test_unwritten_floats_are_not_numbers(code: str) -> None:
    filled = make_filled((3, 2), code, float("nan"), CPU)
    assert filled.dtype == torch_dtype(code)
    assert torch.isnan(filled.float()).all()


def test_unwritten_integers_are_zero() -> None:
    assert not make_filled((3,), "I32", float("nan"), CPU).any()
    assert not make_filled((3,), "F16", 0, CPU).any()


def test_half_bytes_round_up() -> None:
    assert storage_bytes("F4", 5) == 3
    assert all(storage_bytes(code, 8) == BITS[code] for code in FLOATS)
