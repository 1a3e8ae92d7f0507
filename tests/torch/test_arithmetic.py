"""Unpacking and scaling, held against plain loops over bits and against the compressed-tensors package."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qload.torch.arithmetic import (
    look_up_pairs,
    pack,
    scale_blocks,
    scale_by_index,
    scale_groups,
    take,
    take_striped,
    unpack,
    unpack_striped,
)
from qload.torch.floats import decode_e2m1, encode_e2m1


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Values packed along the last axis into int32 words, bit by bit."""
    rows = []
    for row in values.tolist():
        stream = sum(value << (bits * place) for place, value in enumerate(row))
        count = -(-len(row) * bits // 32)
        words = [(stream >> (32 * place)) & 0xFFFFFFFF for place in range(count)]
        rows.append([word - (1 << 32) if word >> 31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("bits", range(1, 9))
@settings(max_examples=25)
@given(columns=st.integers(1, 130), seed=st.integers(0, 2**31))
def test_unpack_is_the_bits_in_order(bits: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 1 << bits, (3, columns), generator=generator)
    assert torch.equal(unpack(pack_bits(values, bits), bits, columns).long(), values)


@pytest.mark.parametrize("shifts", [(0, 4), (4, 0), (6, 4, 2, 0), tuple(range(27, -1, -3)), (0,)])
@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 50))
def test_stripes_are_runs_of_values(shifts: tuple[int, ...], count: int) -> None:
    bits = {1: 8, 2: 4, 4: 2, 10: 3}[len(shifts)]
    values = torch.arange(count) * 5 % (1 << bits)
    length = -(-count // len(shifts))
    words = torch.zeros(length, dtype=torch.int32 if bits == 3 else torch.uint8)
    for place, value in enumerate(values.tolist()):
        words[place % length] |= value << shifts[place // length]
    assert torch.equal(unpack_striped(words.view(1, -1), bits, shifts, count).long(), values)
    index = torch.tensor([[count - 1, 0], [count // 2, count // 3]])
    assert torch.equal(take_striped(words, bits, shifts, index).long(), values[index])


def test_scaling_leaves_what_it_is_given_as_it_is() -> None:
    values, scale, zero = torch.ones(2, 8), torch.full((2, 2), 2.0), torch.full((2, 2), 3.0)
    assert torch.equal(scale_groups(values, scale, zero, 4), torch.full((2, 8), -4.0))
    assert torch.equal(scale_blocks(values, scale, (1, 4)), torch.full((2, 8), 2.0))
    assert torch.equal(values, torch.ones(2, 8))


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpack_reads_what_the_package_packs(bits: int) -> None:
    half = 1 << (bits - 1)
    values = torch.randint(-half, half, (5, 96), dtype=torch.int8)
    words = pack_to_int32(values, bits)
    assert torch.equal(unpack(words, bits, 96).to(torch.int16) - half, values.to(torch.int16))


@pytest.mark.parametrize("bits", range(1, 9))
def test_take_is_a_selection_of_unpack(bits: int) -> None:
    words = torch.randint(-(2**31), 2**31 - 1, (4, 3 * bits), dtype=torch.int64).to(torch.int32)
    index = torch.tensor([0, 95, 31, 32, 10, 10, 21])
    assert torch.equal(take(words, bits, index), unpack(words, bits, 96)[:, index])


def test_words_of_other_widths_and_strides() -> None:
    values = torch.randint(0, 16, (4, 64))
    words = pack_bits(values, 4)
    assert torch.equal(unpack(words.view(torch.int16), 4, 64).long(), values)
    assert torch.equal(unpack(words.T.contiguous().T, 4, 64).long(), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("columns", "group"), [(64, 16), (64, 64), (50, 16), (7, 128)])
@pytest.mark.parametrize("by_zero_point", [True, False])
def test_groups_scale_their_columns(dtype: torch.dtype, columns: int, group: int, by_zero_point: bool) -> None:
    groups = -(-columns // group)
    values = torch.randint(0, 16, (3, columns), dtype=torch.uint8)
    scale = (torch.rand(3, groups) + 0.5).to(dtype)
    zero: Tensor | int = torch.randint(0, 16, (3, groups), dtype=torch.uint8) if by_zero_point else 8
    expected = torch.empty(3, columns, dtype=dtype)
    for row in range(3):
        for column in range(columns):
            place = (row, column // group)
            offset = float(zero[place]) if isinstance(zero, Tensor) else float(zero)
            expected[row, column] = (values[row, column].to(dtype) - offset) * scale[place]
    assert torch.equal(scale_groups(values, scale, zero, group), expected)
    index = torch.arange(columns) // group
    assert torch.equal(scale_by_index(values, scale, zero, index), expected)


def test_an_index_moves_columns_between_groups() -> None:
    values = torch.tensor([[1, 2, 3, 4]], dtype=torch.uint8)
    scale = torch.tensor([[1.0, 10.0]])
    zero = torch.tensor([[1, 2]], dtype=torch.uint8)
    found = scale_by_index(values, scale, zero, torch.tensor([1, 0, 1, 0], dtype=torch.int32))
    assert found.tolist() == [[-10.0, 1.0, 10.0, 3.0]]


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (5, 7), (2, 3), (1, 1)])
def test_blocks_scale_rows_and_columns(rows: int, columns: int) -> None:
    values = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-rows // 2), -(-columns // 3))
    expected = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            expected[row, column] = values[row, column].float() * scale[row // 2, column // 3]
    assert torch.equal(scale_blocks(values, scale, (2, 3)), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_the_inverse_of_unpacking(bits: int, dtype: torch.dtype) -> None:
    for count in (1, 7, 8, 33, 64):
        values = torch.randint(0, 1 << bits, (3, count), generator=torch.Generator().manual_seed(count))
        words = pack(values, bits, dtype)
        assert words.shape == (3, -(-count * bits // (8 * dtype.itemsize)))
        assert torch.equal(unpack(words, bits, count).long(), values)


def test_codes_of_small_floats_are_those_that_decode_to_them() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    assert torch.equal(encode_e2m1(decode_e2m1(codes, torch.float32)), codes)
    between = torch.tensor([0.25, 0.75, -0.75, 2.5, 5.0, 7.0, -0.1])
    assert decode_e2m1(encode_e2m1(between), torch.float32).tolist() == [0.0, 1.0, -1.0, 2.0, 4.0, 6.0, -0.0]


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (0, 4), (4, 0)])
def test_pairs_are_looked_up_one_by_one(shape: tuple[int, int]) -> None:
    codes, table = torch.randint(0, 256, shape, dtype=torch.uint8), torch.randn(16)
    expected = torch.stack((table[(codes >> 4).long()], table[(codes & 15).long()]), -1).flatten(-2)
    assert torch.equal(look_up_pairs(codes, table), expected)
