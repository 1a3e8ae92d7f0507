"""bitsandbytes' operators as kernels: they compute what bitsandbytes does, and nothing of a weight is lost."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from gpus import needs_gpu
from qload_bitsandbytes.kernels.cpu import CpuCodebook
from qload_bitsandbytes.kernels.cuda import CudaCodebook
from torch import Tensor

import qload
from qload.torch import Layer
from qload.torch.kernels import Case, CodebookWeight, Inputs, IntegerWeight, Kernel
from qload.torch.kernels.dense import Strips
from qload.torch.kernels.table import Table

CPU = torch.device("cpu")
CHECKPOINT = Path(__file__).parents[1] / "data" / "bnb-nf4-dq"
KINDS = [(quant_type, group) for quant_type in ("nf4", "fp4") for group in (32, 64, 256)]
kinds = pytest.mark.parametrize(("quant_type", "group"), KINDS)


class HereCodebook(CudaCodebook):
    """The operator for CUDA, which bitsandbytes has for CPUs, too, by dequantizing."""

    devices = "CPU"


@pytest.fixture(scope="module")
def package() -> Any:
    return pytest.importorskip("bitsandbytes")


@pytest.fixture(params=[CpuCodebook, HereCodebook], ids=["gemv", "gemm"])
def kernel(request: pytest.FixtureRequest, package: Any) -> type[Kernel]:
    if request.param is CpuCodebook and not package.functional.has_avx512bf16():
        pytest.skip("the operator needs AVX512_BF16")
    found: type[Kernel] = request.param
    return found


def quantize(package: Any, quant_type: str, group: int, rows: int = 96, columns: int = 512) -> tuple[Tensor, Any]:
    """Codes and their state, as bitsandbytes makes them."""
    dense = torch.randn(rows, columns, generator=torch.Generator().manual_seed(group)).bfloat16()
    codes, state = package.functional.quantize_4bit(dense, blocksize=group, quant_type=quant_type)
    return codes, state


def read(codes: Tensor, state: Any) -> CodebookWeight:
    rows, columns = state.shape
    scale = state.absmax.view(rows, -1)
    return CodebookWeight(
        codes.view(rows, columns // 2), state.quant_type, state.code, scale, state.blocksize, state.dtype
    )


def draw(tokens: int, columns: int = 512) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).bfloat16()


def find_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@kinds
def test_the_weight_is_what_bitsandbytes_dequantizes(package: Any, quant_type: str, group: int) -> None:
    codes, state = quantize(package, quant_type, group)
    assert torch.equal(read(codes, state).dequantize(), package.functional.dequantize_4bit(codes, state))


@kinds
@pytest.mark.parametrize("tokens", [0, 1, 5, 16, 33, 300])
def test_products_are_those_of_the_dequantized_weight(
    package: Any, kernel: type[Kernel], quant_type: str, group: int, tokens: int
) -> None:
    weight, x = read(*quantize(package, quant_type, group)), draw(tokens)
    y = kernel([weight], Case(CPU, torch.bfloat16))(x)
    assert y.dtype == x.dtype
    assert y.shape == (tokens, weight.rows)
    if tokens:
        assert find_error(y, x.double() @ weight.dequantize().double().T) < torch.finfo(x.dtype).eps


@kinds
def test_products_are_those_of_bitsandbytes_own_layer(package: Any, quant_type: str, group: int) -> None:
    if not package.functional.has_avx512bf16():
        pytest.skip("the operator needs AVX512_BF16")
    codes, state = quantize(package, quant_type, group)
    packed = CpuCodebook([read(codes, state)], Case(CPU, torch.bfloat16))
    parameter = package.nn.Params4bit(
        codes, requires_grad=False, quant_state=state, blocksize=group, quant_type=quant_type, bnb_quantized=True
    )
    layer = package.nn.Linear4bit(512, 96, bias=False, compute_dtype=torch.bfloat16).eval()
    layer.weight = parameter
    x = draw(7)
    with torch.no_grad():
        assert torch.equal(packed(x), layer(x))


@kinds
def test_nothing_of_a_weight_is_lost(package: Any, kernel: type[Kernel], quant_type: str, group: int) -> None:
    weight = read(*quantize(package, quant_type, group))
    packed = kernel([weight], Case(CPU, torch.bfloat16))
    for each in (packed, copy.deepcopy(packed)):
        found = each.unpack()
        assert isinstance(found, CodebookWeight)
        assert torch.equal(found.values, weight.values)
        assert torch.equal(found.scale, weight.scale)
        assert torch.equal(found.dequantize(), weight.dequantize())


def test_gradients_are_those_of_the_dequantized_weight(package: Any, kernel: type[Kernel]) -> None:
    weight, x = read(*quantize(package, "nf4", 64)), draw(3).requires_grad_()
    pull = torch.randn(3, weight.rows).bfloat16()
    (kernel([weight], Case(CPU, torch.bfloat16))(x) * pull).sum().backward()
    assert x.grad is not None
    assert find_error(x.grad, pull.double() @ weight.dequantize().double()) < torch.finfo(x.dtype).eps


def test_each_expert_has_its_weight(package: Any, kernel: type[Kernel]) -> None:
    weight = read(*quantize(package, "nf4", 64))
    stack = [replace(weight, values=weight.values.flip(0)), replace(weight, scale=2 * weight.scale), weight]
    packed, x = kernel(iter(stack), Case(CPU, torch.bfloat16, experts=3)), draw(3)
    for number, each in enumerate(stack):
        assert torch.equal(packed(x, number), kernel([each], Case(CPU, torch.bfloat16))(x))
        assert torch.equal(packed.unpack(number).dequantize(), each.dequantize())


def test_inputs_are_arranged(package: Any, kernel: type[Kernel]) -> None:
    inputs = Inputs(torch.rand(512) + 0.5, torch.randperm(512))
    weight, x = read(*quantize(package, "nf4", 64)), draw(5)
    packed = kernel([replace(weight, inputs=inputs)], Case(CPU, torch.bfloat16))
    assert find_error(packed(x), inputs.arrange(x).double() @ weight.dequantize().double().T) < torch.finfo(x.dtype).eps


def test_layers_compile_whole(package: Any, kernel: type[Kernel]) -> None:
    packed, x = kernel([read(*quantize(package, "nf4", 64))], Case(CPU, torch.bfloat16)), draw(3)
    with torch.no_grad():
        compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), packed(x))


@needs_gpu
@kinds
@pytest.mark.parametrize("tokens", [1, 5, 300])
def test_products_on_a_gpu(package: Any, quant_type: str, group: int, tokens: int) -> None:
    weight, x = read(*quantize(package, quant_type, group)).to(torch.device("cuda")), draw(tokens).cuda()
    packed = CudaCodebook([weight], Case(x.device, x.dtype))
    assert find_error(packed(x), x.double() @ weight.dequantize().double().T) < torch.finfo(x.dtype).eps
    assert torch.equal(packed.unpack().dequantize(), weight.dequantize())


def test_a_trial_takes_it(package: Any, kernel: type[Kernel]) -> None:
    weight, case = read(*quantize(package, "nf4", 64)), Case(CPU, torch.bfloat16)
    assert Table((kernel, Strips)).choose(weight, case).kernel is kernel


def test_a_loaded_checkpoint_computes_with_it(package: Any) -> None:
    if not package.functional.has_avx512bf16():
        pytest.skip("the operator needs AVX512_BF16")
    model = qload.load(CHECKPOINT, dtype=torch.bfloat16)
    assert qload.report(model).paths["bitsandbytes::gemv_4bit"] == sum(is_four_bits(each) for each in model.modules())


def is_four_bits(module: torch.nn.Module) -> bool:
    return isinstance(module, Layer) and module.treatment.scheme is not None


def list_refused(weight: CodebookWeight) -> Iterator[tuple[type[Kernel], Any, torch.dtype, str]]:
    bfloat16 = torch.bfloat16
    yield CpuCodebook, weight.cut(0, 40), bfloat16, "no multiple of 32"
    yield CpuCodebook, weight, torch.float32, "it rounds float32 to bfloat16"
    yield CpuCodebook, replace(weight, group=512 * 4), bfloat16, "not those of bitsandbytes"
    yield HereCodebook, replace(weight, group=96), bfloat16, "not those of bitsandbytes"
    yield HereCodebook, replace(weight, table=weight.table.flip(0)), bfloat16, "the table is not that of nf4"
    yield HereCodebook, IntegerWeight(weight.values, 4, 512, weight.scale, 8, 64), bfloat16, "codes of four bits"


def test_what_the_operators_cannot_take_is_refused_in_words(package: Any) -> None:
    if not package.functional.has_avx512bf16():
        pytest.skip("the operator needs AVX512_BF16")
    for kernel, weight, dtype, words in list_refused(read(*quantize(package, "nf4", 64))):
        assert words in (kernel.refuse(weight, Case(CPU, dtype)) or "")


def test_weights_of_other_kinds_and_devices_are_not_theirs() -> None:
    weight = CodebookWeight(
        torch.zeros(32, 64, dtype=torch.uint8), "other", torch.zeros(16), torch.ones(32, 2), 64, torch.bfloat16
    )
    assert not CpuCodebook.serves(weight, Case(CPU, torch.bfloat16))
    known = replace(weight, element="nf4")
    assert CpuCodebook.serves(known, Case(CPU, torch.bfloat16))
    assert not CudaCodebook.serves(known, Case(CPU, torch.bfloat16))
    assert CudaCodebook.serves(known, Case(torch.device("cuda"), torch.bfloat16))


def report_of(path: Path) -> str:
    return " ".join(qload.report(qload.load(path, dtype=torch.bfloat16)).reasons)


def test_without_the_package_layers_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("qload_bitsandbytes.kernels.codebook.importlib", SimpleNamespace(import_module=find))
    assert "bitsandbytes::gemv_4bit: bitsandbytes is not installed" in report_of(CHECKPOINT)


@pytest.mark.parametrize(
    "error", [RuntimeError("no CUDA runtime\nfound anywhere"), ModuleNotFoundError("no CUDA runtime", name="packaging")]
)
def test_a_package_that_cannot_be_imported_is_passed_over(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr("qload_bitsandbytes.kernels.codebook.importlib", SimpleNamespace(import_module=fail))
    assert f"importing bitsandbytes raises {type(error).__name__}: no CUDA runtime" in report_of(CHECKPOINT)


def test_another_package_of_that_name_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    assert "what is installed as bitsandbytes has no 4-bit types" in report_of(CHECKPOINT)


def test_the_package_is_not_imported_where_it_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr("qload_bitsandbytes.kernels.codebook.importlib", SimpleNamespace(import_module=fail))
    assert "dtype=bfloat16 is what it is for" in " ".join(
        qload.report(qload.load(CHECKPOINT, dtype=torch.float32)).reasons
    )


def test_another_process_computes_alike(package: Any, kernel: type[Kernel], tmp_path: Path) -> None:
    if kernel is HereCodebook:
        pytest.skip("no other process has the class")
    packed, x = kernel([read(*quantize(package, "nf4", 64))], Case(CPU, torch.bfloat16)), draw(3)
    torch.save((packed, x, packed(x)), tmp_path / "packed")
    code = f"""
import torch
packed, x, expected = torch.load({str(tmp_path / "packed")!r}, weights_only=False)
assert torch.equal(packed(x), expected)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_kernel_is_not_had_back_without_its_operator(
    package: Any, kernel: type[Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = kernel([read(*quantize(package, "nf4", 64))], Case(CPU, torch.bfloat16))
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    with pytest.raises(qload.QloadError, match="packed for an operator that is not here"):
        copy.deepcopy(packed)
