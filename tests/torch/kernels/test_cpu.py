"""Kernels for CPUs hold weights without loss, and multiply by them within what rounding explains."""

import copy
import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.kernels import (
    E2M1,
    Case,
    CodebookWeight,
    FloatWeight,
    Inputs,
    IntegerWeight,
    Kernel,
    Weight,
    choose_kernel,
)
from qload.torch.kernels.dense import Strips
from qload.torch.kernels.int4_cpu import CpuInt4
from qload.torch.kernels.int8_cpu import CpuInt8
from qload.torch.kernels.int8_dynamic import Int8Dynamic
from qload.torch.kernels.roundings import DynamicRounding, StaticRounding
from qload.torch.kernels.strips import divide_rows, find_least
from qload.torch.kernels.table import BUILT_IN
from qload.torch.kernels.upcast import UpcastStrips

CPU = torch.device("cpu")
TOKENS = [0, 1, 2, 16, 33, 300]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
PER_TOKEN = DynamicRounding(8, is_float=False)
AWQ = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where a word has its eight rows."""
has_int4 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2"), reason="the kernel needs such vectors"
)


def make_integers(
    bits: int, rows: int, columns: int, group: int, *, zero: str = "none", dtype: torch.dtype = torch.bfloat16
) -> IntegerWeight:
    generator = torch.Generator().manual_seed(rows * columns + group)
    groups = columns // group
    values = torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    scale = (torch.rand(rows, groups, generator=generator) / 100 + 0.001).to(dtype)
    whole = torch.randint(0, (1 << bits) + 1, (rows, groups), generator=generator)
    half = 1 << (bits - 1)
    zeros: dict[str, Tensor | int] = {"none": half, "whole": whole.to(torch.int16), "float": (whole + 0.3).to(dtype)}
    if zero == "signed":
        return IntegerWeight((values.int() - half).to(torch.int8), bits, columns, scale, 0, group)
    if zero == "signed float":
        zero_point = (whole - half + 0.3).to(dtype)
        return IntegerWeight((values.int() - half).to(torch.int8), bits, columns, scale, zero_point, group)
    return IntegerWeight(values, bits, columns, scale, zeros[zero], group)


def word(weight: IntegerWeight) -> IntegerWeight:
    """The same weight in words by columns."""
    whole = weight.spread().T.reshape(weight.columns // 8, 8, weight.rows).to(torch.int64)
    words = (whole << torch.arange(0, 32, 4).view(8, 1)).sum(1)
    return replace(weight, values=words.to(torch.int32))


def word_rows(weight: IntegerWeight, order: tuple[int, ...]) -> IntegerWeight:
    """The same weight in words of eight rows, in that order."""
    whole = weight.spread().view(weight.rows // 8, 8, weight.columns).to(torch.int64)
    words = (whole << 4 * torch.tensor(order).view(8, 1)).sum(1).T.contiguous()
    return replace(weight, values=words.to(torch.int32), order=order)


def make_floats(dtype: torch.dtype, rows: int, columns: int, block: tuple[int, int]) -> FloatWeight:
    generator = torch.Generator().manual_seed(rows * columns)
    blocks = -(-rows // block[0]), -(-columns // block[1])
    scale = torch.rand(blocks, generator=generator) + 0.1
    if dtype is torch.uint8:
        values = torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
        return FloatWeight(values, E2M1, columns, scale.to(torch.float8_e8m0fnu), block)
    values = torch.randn(rows, columns, generator=generator).to(dtype)
    return FloatWeight(values, str(dtype).removeprefix("torch.float8_"), columns, scale, block)


def make_codes(rows: int, columns: int, group: int, dtype: torch.dtype = torch.bfloat16) -> CodebookWeight:
    generator = torch.Generator().manual_seed(rows * columns)
    values = torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
    scale = torch.rand(rows, -(-columns // group), generator=generator) + 0.1
    return CodebookWeight(values, "table", torch.randn(16, generator=generator), scale, group, dtype)


def pack(kernel: type[Kernel], weight: Weight, dtype: torch.dtype) -> Kernel:
    case = Case(CPU, dtype)
    assert kernel.serves(weight, case)
    assert kernel.refuse(weight, case) is None
    return kernel([weight], case)


def draw(tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def check(kernel: Kernel, weight: Weight, x: Tensor) -> None:
    """y is that of float64 but for the rounding of scales, weights, inputs, sums and outputs to their dtypes."""
    y = kernel(x)
    dense = replace(weight, inputs=Inputs()).dequantize().double()
    inputs = weight.inputs.round(weight.inputs.arrange(x), lambda greatest: greatest).double()
    bound = inputs.abs() @ (dense.abs() + _find_offsets(weight)).T
    assert y.shape == (len(x), weight.rows)
    assert y.dtype == x.dtype
    error = (y.double() - inputs @ dense.T).abs()
    eps = max(torch.finfo(dtype).eps for dtype in (x.dtype, weight.dequantize().dtype))
    assert (error <= 2 * eps * bound + 1e-6).all()


def _find_offsets(weight: Weight) -> Tensor:
    """How large the products are that kernels subtract from one another, [rows, columns]."""
    if not isinstance(weight, IntegerWeight) or not isinstance(weight.zero, Tensor):
        return torch.zeros(1, 1, dtype=torch.float64)
    sizes = weight.zero.double().abs() * weight.scale.double()
    return sizes.repeat_interleave(weight.columns // sizes.shape[1], 1).expand(weight.rows, -1)


def check_restored(kernel: Kernel, weight: Weight) -> None:
    found = kernel.unpack()
    assert torch.equal(found.dequantize(), weight.dequantize())
    assert found.dequantize().dtype == weight.dequantize().dtype


INTEGERS: list[tuple[type[Kernel], Weight]] = [
    (CpuInt4, make_integers(4, 64, 512, group, zero=zero))
    for group in (32, 64, 128, 256, 512)
    for zero in ("none", "whole", "float", "signed", "signed float")
]
INTEGERS += [
    (CpuInt4, make_integers(4, rows, 96, 32, zero="whole", dtype=dtype))
    for rows in (16, 80, 208)
    for dtype in (torch.float16, torch.float32)
]
INTEGERS += [
    (CpuInt8, make_integers(8, rows, 512, group, zero=zero))
    for rows in (64, 37)
    for group in (64, 128, 512)
    for zero in ("none", "whole", "float", "signed")
]
INTEGERS += [(CpuInt8, replace(make_integers(8, 37, 64, 64, zero="signed"), whole=torch.tensor(1 / 127)))]
INTEGERS += [(CpuInt4, replace(make_integers(4, 64, 64, 64, zero="whole"), shift=torch.rand(64, 1).bfloat16()))]
INTEGERS += [(Strips, make_integers(bits, 33, 80, 16, zero="whole")) for bits in (2, 3, 4, 5, 8)]
WORDED = [
    word(make_integers(4, rows, columns, 32, zero=zero))
    for rows, columns in ((64, 512), (16, 32), (48, 96), (80, 96), (208, 64), (192, 4096))
    for zero in ("none", "whole", "float")
]
WORDED += [
    word_rows(make_integers(4, rows, columns, 32, zero=zero), order)
    for rows, columns in ((64, 512), (16, 32), (48, 96), (208, 64), (192, 4096))
    for zero, order in (
        ("none", tuple(range(8))),
        ("whole", AWQ),
        ("float", (7, 2, 5, 0, 1, 4, 3, 6)),
    )
]
INTEGERS += [(kernel, weight) for weight in WORDED for kernel in (CpuInt4, Strips)]
INTEGERS += [
    (Strips, word(make_integers(4, rows, columns, 8))) for rows, columns in ((1, 8), (33, 8), (1, 16), (7, 40))
]
CODES: list[tuple[type[Kernel], Weight]] = [
    (Strips, make_codes(rows, columns, group)) for rows, columns, group in ((33, 192, 64), (33, 192, 192), (8, 74, 32))
]
FLOATS: list[tuple[type[Kernel], Weight]] = [
    (Strips, make_floats(values, rows, 192, block))
    for values in (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8)
    for rows, block in ((48, (1, 192)), (48, (1, 32)), (4, (4, 192)), (100, (64, 64)))
]
FLOATS += [
    (UpcastStrips, replace(make_floats(values, rows, 192, block), divides=divides))
    for values in (torch.float8_e4m3fn, torch.float8_e5m2)
    for rows, block in ((48, (1, 192)), (4, (4, 192)))
    for divides in (False, True)
]


@has_int4
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("kernel", "weight"), INTEGERS + FLOATS + CODES)
def test_products_are_those_of_the_dequantized_weight(kernel: type[Kernel], weight: Weight, tokens: int) -> None:
    check(pack(kernel, weight, torch.bfloat16), weight, draw(tokens, weight.columns, torch.bfloat16))


@has_int4
@pytest.mark.parametrize(("kernel", "weight"), INTEGERS + FLOATS + CODES)
def test_nothing_of_a_weight_is_lost(kernel: type[Kernel], weight: Weight) -> None:
    check_restored(pack(kernel, weight, torch.bfloat16), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("rounding", [PER_TOKEN, DynamicRounding(8, is_float=False, by_tensor=True)])
@pytest.mark.parametrize("zero", ["none", "whole", "signed"])
def test_products_of_integers(rounding: DynamicRounding, zero: str, tokens: int, dtype: torch.dtype) -> None:
    if not tokens and rounding.by_tensor:
        pytest.skip("nothing has no greatest value")
    weight = replace(make_integers(8, 37, 67, 67, zero=zero), inputs=Inputs(rounding=rounding))
    packed = pack(Int8Dynamic, weight, dtype)
    check(packed, weight, draw(tokens, 67, dtype))
    check_restored(packed, weight)


def test_products_of_integers_with_a_stored_scale() -> None:
    inputs = Inputs(rounding=StaticRounding(8, is_float=False), scale=torch.tensor(0.02))
    weight = replace(make_integers(8, 40, 64, 64, zero="signed"), inputs=inputs)
    check(pack(Int8Dynamic, weight, torch.bfloat16), weight, draw(5, 64, torch.bfloat16))


@has_int4
@pytest.mark.parametrize("kernel", [CpuInt4, CpuInt8, Strips])
def test_inputs_are_multiplied_put_in_order_and_rounded(kernel: type[Kernel]) -> None:
    inputs = Inputs(torch.rand(128) + 0.5, torch.randperm(128), DynamicRounding(8, is_float=True))
    weight = replace(make_integers(8 if kernel is CpuInt8 else 4, 64, 128, 64), inputs=inputs)
    packed = pack(kernel, weight, torch.bfloat16)
    for tokens in (1, 3, 300):
        check(packed, weight, draw(tokens, 128, torch.bfloat16))
    check_restored(packed, weight)


KINDS: list[tuple[type[Kernel], Weight]] = [
    (CpuInt4, make_integers(4, 80, 128, 64, zero="whole")),
    (CpuInt4, word(make_integers(4, 80, 128, 64, zero="whole"))),
    (Strips, word(make_integers(4, 77, 128, 64, zero="whole"))),
    (CpuInt4, word_rows(make_integers(4, 80, 128, 64, zero="whole"), AWQ)),
    (Strips, word_rows(make_integers(4, 72, 128, 64, zero="whole"), AWQ)),
    (CpuInt8, make_integers(8, 77, 128, 64, zero="whole")),
    (Int8Dynamic, replace(make_integers(8, 77, 64, 64), inputs=Inputs(rounding=PER_TOKEN))),
    (Strips, make_floats(torch.float8_e4m3fn, 100, 128, (64, 64))),
    (UpcastStrips, make_floats(torch.float8_e4m3fn, 100, 128, (1, 128))),
    (Strips, make_codes(100, 128, 64)),
]
kinds = pytest.mark.parametrize(("kernel", "weight"), KINDS)


@has_int4
@kinds
@pytest.mark.parametrize("expert", [0, 2, torch.tensor(1)])
def test_each_expert_has_its_weight(kernel: type[Kernel], weight: Weight, expert: int | Tensor) -> None:
    stack = [replace(weight, values=weight.values.flip(0)), replace(weight, scale=weight.scale * 2), weight]
    packed = kernel(iter(stack), Case(CPU, torch.bfloat16, experts=3))
    x = draw(3, weight.columns, torch.bfloat16)
    alone = pack(kernel, stack[int(expert)], torch.bfloat16)
    assert torch.equal(packed(x, expert), alone(x))
    assert torch.equal(packed.unpack(int(expert)).dequantize(), stack[int(expert)].dequantize())


def save_and_load(kernel: Kernel) -> Kernel:
    """As torch does it, for pickle alone knows no small floats."""
    file = io.BytesIO()
    torch.save(kernel, file)
    file.seek(0)
    loaded: Kernel = torch.load(file, weights_only=False)
    return loaded


@has_int4
@kinds
def test_copies_compute_alike(kernel: type[Kernel], weight: Weight) -> None:
    packed, x = pack(kernel, weight, torch.bfloat16), draw(3, weight.columns, torch.bfloat16)
    blank = pack(kernel, replace(weight, values=torch.zeros_like(weight.values)), torch.bfloat16)
    blank.load_state_dict(packed.state_dict())
    for each in (copy.deepcopy(packed), save_and_load(packed), blank):
        assert torch.equal(each(x), packed(x))
    assert {tensor.device.type for tensor in copy.deepcopy(packed).to("meta").buffers()} == {"meta"}


@has_int4
@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_model_that_is_cast_computes_on(kernel: type[Kernel], weight: Weight, dtype: torch.dtype) -> None:
    packed = pack(kernel, weight, torch.bfloat16).to(dtype)
    check(packed, weight, draw(3, weight.columns, dtype))
    check_restored(packed, weight)


@has_int4
@kinds
@pytest.mark.parametrize("tokens", [1, 300])
def test_gradients_are_those_of_the_dequantized_weight(
    kernel: type[Kernel], weight: Weight, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qload.torch.kernels.strips._VALUES", 1)
    packed = kernel([replace(weight, inputs=Inputs())], Case(CPU, torch.bfloat16))
    x = draw(tokens, weight.columns, torch.bfloat16).requires_grad_()
    pull = draw(tokens, weight.rows, torch.bfloat16)
    (packed(x) * pull).sum().backward()
    dense = weight.dequantize().to(x.dtype)
    assert x.grad is not None
    error, bound = (x.grad.double() - pull.double() @ dense.double()).abs(), pull.double().abs() @ dense.double().abs()
    assert (error <= torch.finfo(x.dtype).eps * bound).all()


@pytest.mark.parametrize("shape", [(48, 64), (192, 4096)])
def test_dense_products_add_the_bias_before_they_are_rounded(shape: tuple[int, int]) -> None:
    rows, columns = shape
    values, scale = torch.randint(-8, 8, shape, dtype=torch.int8), torch.rand(rows, columns // 32).bfloat16()
    weight = IntegerWeight(values, 4, columns, scale, 0, 32)
    x, bias = draw(9, columns, torch.bfloat16), torch.randn(rows).bfloat16()
    packed = Strips([weight], Case(torch.device("cpu"), torch.bfloat16))
    parts = zip(weight.dequantize().split(128), bias.split(128), strict=True)
    expected = torch.cat([F.linear(x, part, own) for part, own in parts], 1)
    assert torch.equal(packed(x, bias=bias), expected)
    assert not torch.equal(packed(x) + bias, expected)


def test_a_bias_that_is_trained_has_its_gradient() -> None:
    weight = IntegerWeight(torch.randint(-8, 8, (48, 64), dtype=torch.int8), 4, 64, torch.rand(48, 2), 0, 32)
    packed = Strips([weight], Case(torch.device("cpu"), torch.float32))
    for is_trained in (True, False):
        bias = torch.randn(48, requires_grad=True)
        packed(draw(9, 64, torch.float32).requires_grad_(is_trained), bias=bias).sum().backward()
        assert bias.grad is not None
        assert torch.equal(bias.grad, torch.full((48,), 9.0))


@has_int4
@kinds
def test_products_come_in_several_strips(kernel: type[Kernel], weight: Weight, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x = pack(kernel, weight, torch.bfloat16), draw(3, weight.columns, torch.bfloat16)
    whole = packed.multiply_dense(x, dict(packed.named_buffers()), Inputs(), lambda greatest: greatest)
    monkeypatch.setattr("qload.torch.kernels.strips._VALUES", 1)
    assert len(list(packed.split(dict(packed.named_buffers())))) > 1
    torch.testing.assert_close(
        packed.multiply_dense(x, dict(packed.named_buffers()), Inputs(), lambda greatest: greatest), whole
    )


@pytest.mark.parametrize("tokens", [0, 1, 3, 160, 512, 1024, 3000])
@pytest.mark.parametrize("columns", [128, 4096])
def test_strips_are_as_tall_as_many_tokens_want_them(
    tokens: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_heights() -> list[int]:
        strips = divide_rows(1 << 14, columns, least=find_least(torch.empty(tokens, columns, device="meta")))
        return [stop - start for start, stop in strips][:-1]

    in_cache = (1 << 19) // columns
    heights = set(list_heights())
    assert all(max(in_cache, tokens // 64 * 64) <= height <= max(in_cache, 2 * tokens) for height in heights)
    assert tokens < 512 or not any(384 <= height < 1024 for height in heights)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert set(list_heights()) == {in_cache}


@pytest.mark.parametrize(
    ("weight", "dtype", "reasons"),
    [
        (make_integers(4, 64, 128, 16), torch.bfloat16, ["groups of 16 columns are no multiple of 32"]),
        (make_integers(4, 24, 128, 32), torch.bfloat16, ["24 output features are no multiple of 16"]),
        (make_integers(4, 64, 128, 32), torch.float16, ["dtype=bfloat16 is many times as fast"]),
        (make_integers(8, 64, 72, 72), torch.bfloat16, ["no multiples of 16"]),
        (make_integers(8, 64, 64, 32), torch.bfloat16, ["too many products"]),
        (make_integers(3, 64, 64, 32), torch.bfloat16, ["no kernel multiplies by int3"]),
        (make_floats(torch.float8_e4m3fn, 8, 64, (1, 64)), torch.float16, ["no kernel multiplies by e4m3fn"]),
        (
            make_floats(torch.float8_e4m3fn, 8, 64, (8, 32)),
            torch.bfloat16,
            ["blocks of 8x32 has more scales"],
        ),
    ],
)
@has_int4
def test_others_are_dequantized_by_strips_and_it_is_said_why(
    weight: Weight, dtype: torch.dtype, reasons: Sequence[str]
) -> None:
    choice = choose_kernel(BUILT_IN, weight, Case(CPU, dtype))
    assert choice.kernel is Strips
    assert all(reason in choice.reason for reason in reasons), choice.reason


@has_int4
def test_inputs_that_lie_anywhere_do_not_crash() -> None:
    weight = make_integers(8, 64, 64, 64)
    x = draw(1, 65, torch.bfloat16).flatten()[1:].view(1, 64)
    assert x.data_ptr() % 32
    check(pack(CpuInt8, weight, torch.bfloat16), weight, x)
    four = make_integers(4, 64, 64, 64)
    check(pack(CpuInt4, four, torch.bfloat16), four, x)


@pytest.mark.parametrize("weight", WORDED)
def test_words_are_pairs_that_are_turned(weight: IntegerWeight) -> None:
    pairs = weight.pair()
    assert pairs.is_paired
    assert not weight.is_paired
    assert (weight.rows, weight.label) == (pairs.rows, pairs.label)
    again = word(pairs) if weight.order is None else word_rows(pairs, weight.order)
    assert (pairs.order, torch.equal(again.values, weight.values)) == (None, True)
    outline = weight.outline()
    assert (outline.values.shape, outline.values.dtype) == (pairs.values.shape, pairs.values.dtype)
    assert outline.is_paired
    made: list[torch.Tensor] = []

    def make(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        made.append(torch.empty(shape, dtype=dtype))
        return made[-1]

    assert torch.equal(weight.pair(make).values, pairs.values)
    assert weight.pair(make).values is made[-1]


@pytest.mark.parametrize("weight", WORDED)
@pytest.mark.parametrize(("start", "stop"), [(0, 16), (1, 2), (5, 16), (3, None), (8, None), (0, 0)])
def test_words_are_cut_anywhere(weight: IntegerWeight, start: int, stop: int | None) -> None:
    end = weight.rows if stop is None else stop
    some = weight.cut(start, end)
    assert some.is_worded == (weight.order is None or not (start % 8 or end % 8))
    assert torch.equal(some.dequantize(), weight.dequantize()[start:stop])
    assert torch.equal(some.spread(), weight.spread()[start:stop])


@has_int4
@pytest.mark.parametrize("kernel", [CpuInt4, Strips])
@pytest.mark.parametrize("rows", [16, 64, 144])
@pytest.mark.parametrize("strip", [1, 100, 1 << 17])
@pytest.mark.parametrize("block", [64, 32])
def test_words_of_some_rows_are_packed_wherever_they_lie(
    kernel: type[Kernel], rows: int, strip: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qload.torch.kernels.int4_cpu._find_block", lambda: block)
    for module in ("kernels.int4_cpu", "nibbles"):
        monkeypatch.setattr(f"qload.torch.{module}._STRIP", strip)
    drawn = make_integers(4, 160, 256, 32, zero="whole")
    for whole in (word(drawn), word_rows(drawn, AWQ)):
        for start in (0, 1, 7, 8, 16):
            some = whole.cut(start, start + rows)
            found, expected = (pack(kernel, each, torch.bfloat16) for each in (some, some.pair()))
            held = dict(expected.named_buffers())
            assert all(torch.equal(each, held[name]) for name, each in found.named_buffers())
            check_restored(found, some)


class Paired(Strips):
    """A kernel that was written for pairs."""

    label = "paired"

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        return isinstance(weight, IntegerWeight) and weight.is_paired

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        shape = tuple(weight.values.shape)
        return None if shape == (weight.rows, weight.columns // 2) else f"values are {shape}"


@pytest.mark.parametrize("experts", [None, 2])
@pytest.mark.parametrize("order", [None, AWQ])
def test_a_kernel_that_takes_no_words_sees_and_is_given_pairs(
    experts: int | None, order: tuple[int, ...] | None
) -> None:
    pairs, made = make_integers(4, 80, 96, 32), list[Tensor]()
    weight = word(pairs) if order is None else word_rows(pairs, order)

    def make(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made.append(torch.empty(shape, dtype=dtype))
        return made[-1]

    case = Case(CPU, torch.bfloat16, experts, make)
    assert choose_kernel([Paired], weight, case).kernel is Paired
    packed = Paired([weight] * (experts or 1), case)
    assert torch.equal(packed.unpack(None if experts is None else 1).dequantize(), weight.dequantize())
    shapes = {tuple(each.shape) for each in made}
    assert (80, 48) in shapes
    held = packed.get_buffer("values").data_ptr()
    assert held in {each.data_ptr() for each in made}
