"""A kernel that computes otherwise than it should is not chosen, and the report says why."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from gpus import make_int4
from samples import DATA
from torch import Tensor

import qload
from qload.torch.activations import Agree
from qload.torch.kernels import Case, Inputs, IntegerWeight, Table, Weight
from qload.torch.kernels.int4_cpu import CpuInt4
from qload.torch.kernels.table import BUILT_IN
from qload.torch.kernels.trials import Trials, compare

CASE = Case(torch.device("cpu"), torch.bfloat16)
HAS_VECTORS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
pytestmark = pytest.mark.skipif(not HAS_VECTORS, reason="torch multiplies by four bits with AVX2 and more")


class Counting(CpuInt4):
    """Says how often it packs."""

    label = "counting"
    packed = 0

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        Counting.packed += 1
        super().fill(weight, into)


class Transposed(CpuInt4):
    """Takes the halves of a block for each other."""

    label = "transposed"

    @classmethod
    def fill_values(cls, weight: IntegerWeight, into: Tensor) -> None:
        super().fill_values(weight, into)
        into.copy_(into >> 4 | into << 4)


class Mistaken(CpuInt4):
    """Gives back what it packed, and multiplies by something else."""

    label = "mistaken"

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        return super().multiply(x, {**held, "values": held["values"] ^ 1}, inputs, agree)


class Shifted(CpuInt4):
    """Is right in all but the last rows, which are no whole block."""

    label = "shifted"

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        y = super().multiply(x, held, inputs, agree)
        whole = self.rows // 64 * 64
        return torch.cat([y[:, :whole], 8 * y[:, whole:]], -1)


class Unordered(CpuInt4):
    """Knows no words of rows."""

    label = "unordered"

    @classmethod
    def fill_values(cls, weight: IntegerWeight, into: Tensor) -> None:
        super().fill_values(replace(weight, values=weight.values.view(-1, weight.rows), order=None), into)


class Lacking(CpuInt4):
    """Has an operator that this machine lacks."""

    label = "lacking"

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        raise RuntimeError("no kernel image is available\nfor this device")


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (Transposed, "transposed: tried on 176 rows, it does not give back the weight that it packed"),
        (Mistaken, "mistaken: tried on 176 rows, it differs from the product of the dequantized weight by"),
        (Shifted, "shifted: tried on 176 rows, it differs from the product of the dequantized weight by"),
        (Lacking, "lacking: tried on 176 rows, it raises RuntimeError: no kernel image is available"),
    ],
)
def test_what_computes_otherwise_is_not_chosen(kernel: type[CpuInt4], reason: str) -> None:
    weight = make_int4(304, 256, 64)
    assert Table((CpuInt4,)).choose(weight, CASE).kernel is CpuInt4
    choice = Table((kernel, *BUILT_IN)).choose(weight, CASE)
    assert choice.kernel is CpuInt4
    refused = Table((kernel,)).choose(weight, CASE)
    assert refused.kernel is None
    assert refused.reason.startswith(reason)
    assert "\n" not in refused.reason


def test_each_kind_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "packed", 0)
    table = Table((Counting,))
    kinds = [make_int4(256, 256, 64), make_int4(512, 256, 64), make_int4(256, 256, 32), make_int4(272, 256, 64)]
    for weight in (*kinds, *kinds):
        assert table.choose(weight, CASE).kernel is Counting
    assert Counting.packed == 3
    Table((Counting,)).choose(kinds[0], CASE)
    assert Counting.packed == 4


def test_numbers_that_are_none_refuse_nothing() -> None:
    """What is wrong with a checkpoint is not the kernel's fault."""
    weight = make_int4(128, 256, 64)
    weight.scale[0, 0] = torch.nan
    assert Table((CpuInt4,)).choose(weight, CASE).kernel is CpuInt4
    weight.scale.zero_()
    assert Table((CpuInt4,)).choose(weight, CASE).kernel is CpuInt4


def test_another_of_the_kind_tells_where_one_does_not() -> None:
    silent = [make_int4(128, 256, 64) for _ in range(2)]
    silent[0].scale[0, 0] = torch.nan
    silent[1].scale.zero_()
    table = Table((Mistaken, *BUILT_IN))
    for weight in silent:
        assert table.choose(weight, CASE).kernel is Mistaken
    for weight in (make_int4(128, 256, 64), *silent):
        assert table.choose(weight, CASE).kernel is CpuInt4


def test_something_in_place_of_nothing_is_a_mistake() -> None:
    assert compare(torch.ones(2), torch.zeros(2)) is not None
    assert compare(torch.zeros(2), torch.zeros(2)) is None


def test_a_weight_is_tried_where_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is moved has its weights where it was."""
    found = list[torch.device]()

    def find(kernel: type[CpuInt4], weight: IntegerWeight, case: Case) -> None:
        found.extend((weight.values.device, kernel([weight], case).get_buffer("values").device))

    monkeypatch.setattr("qload.torch.kernels.trials._find_fault", find)
    Trials().refuse(CpuInt4, make_int4(128, 256, 64), Case(torch.device("meta"), torch.bfloat16))
    assert {each.type for each in found} == {"meta"}


def test_a_default_device_changes_nothing() -> None:
    weight = make_int4(128, 256, 64)
    with torch.device("meta"):
        assert Table((CpuInt4,)).choose(weight, CASE).kernel is CpuInt4


def test_a_machine_without_memory_is_no_fault_of_the_kernels() -> None:
    class Greedy(CpuInt4):
        def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
            raise torch.OutOfMemoryError(f"{x.nbytes} bytes")

    with pytest.raises(torch.OutOfMemoryError):
        Table((Greedy,)).choose(make_int4(128, 256, 64), CASE)


def test_trying_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    qload.load(DATA / "ct-w4a16-g128-asym", dtype=torch.bfloat16)
    assert torch.equal(torch.rand(3), expected)


def test_a_weight_of_no_rows_tells_nothing() -> None:
    assert Trials().refuse(Transposed, make_int4(16, 64, 32).cut(0, 0), CASE) is None


def test_words_of_rows_are_tried_beside_words_of_columns() -> None:
    words = torch.randint(-(2**31), 2**31 - 1, (16, 128), dtype=torch.int32)
    columns = IntegerWeight(words, 4, 128, torch.rand(128, 2).bfloat16(), 8, 64)
    rows = replace(columns, values=words.view(128, 16), order=(0, 4, 1, 5, 2, 6, 3, 7))
    trials = Trials()
    assert trials.refuse(Unordered, columns, CASE) is None
    assert "does not give back the weight" in str(trials.refuse(Unordered, rows, CASE))
    assert trials.refuse(CpuInt4, rows, CASE) is None
