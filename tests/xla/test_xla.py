"""What XLA computes with qload's layers, divided over four devices or not, is what the CPU does.

It runs where torch_xla is: `make xla`.
"""

import os
from typing import Any

import numpy as np
import pytest
import torch
from jobs.spmd import fill, load_llama, load_model, make_linear, make_refused, make_tied
from samples import DATA, read_reference, relative_error
from torch import Tensor

import qload
from qload.errors import ModelError, ParallelError, ShardError
from qload.torch import Layer
from qload.torch.arithmetic import extend_sign, pack, take, take_striped, unpack, unpack_striped

os.environ.setdefault("PJRT_DEVICE", "CPU")
os.environ.setdefault("CPU_NUM_DEVICES", "4")

WHY = "not run: torch_xla is not here, which has an environment of its own: make xla"
torch_xla = pytest.importorskip("torch_xla", reason=WHY)
runtime = pytest.importorskip("torch_xla.runtime", reason=WHY)
Mesh = pytest.importorskip("torch_xla.distributed.spmd", reason=WHY).Mesh
XlaBackend = pytest.importorskip("qload.torch.spmd.xla", reason=WHY).XlaBackend

runtime.use_spmd()
DEVICE = torch_xla.device()
MESH = Mesh(np.arange(4), (4,), ("tp",))
X = torch.linspace(-2, 2, 48).reshape(3, 16)


def spec_of(tensor: Tensor) -> str:
    """How XLA was told to divide a tensor."""
    spec: str = torch_xla._XLAC._get_xla_sharding_spec(tensor)
    return spec


def test_there_are_four_devices() -> None:
    assert runtime.global_runtime_device_count() == 4


def test_the_operator_rounds_toward_zero_there() -> None:
    """Why unpacking shifts with torch.bitwise_right_shift: where this fails, XLA has been mended."""
    words = torch.tensor([-7, -1], dtype=torch.int32)
    assert (words.to(DEVICE) >> 1).cpu().tolist() == [-3, 0]
    assert torch.bitwise_right_shift(words.to(DEVICE), 1).cpu().tolist() == (words >> 1).tolist() == [-4, -1]


@pytest.mark.parametrize("bits", range(1, 9))
def test_values_are_unpacked_as_on_the_cpu(bits: int) -> None:
    words = torch.randint(-(2**31), 2**31, (4, 8), dtype=torch.int32, generator=torch.Generator().manual_seed(bits))
    there, count = words.to(DEVICE), 8 * 32 // bits
    values = unpack(words, bits, count)
    assert bool((words < 0).any())
    assert torch.equal(unpack(there, bits, count).cpu(), values)
    assert torch.equal(extend_sign(unpack(there, bits, count), bits).cpu(), extend_sign(values, bits))
    index = torch.arange(0, count, 3)
    assert torch.equal(take(there, bits, index.to(DEVICE)).cpu(), take(words, bits, index))
    assert torch.equal(pack(values.to(DEVICE), bits, torch.int32).cpu(), pack(values, bits, torch.int32))
    if 32 % bits == 0:
        shifts = list(range(32 - bits, -1, -bits))
        assert torch.equal(unpack_striped(there, bits, shifts, 64).cpu(), unpack_striped(words, bits, shifts, 64))
        taken = take_striped(there, bits, shifts, index[:8].to(DEVICE)).cpu()
        assert torch.equal(taken, take_striped(words, bits, shifts, index[:8]))


WITHOUT_DTYPE = "hf-gptoss-mxfp4"
"""Its scales are of a dtype that XLA does not have."""


def test_a_dtype_that_xla_does_not_have_is_an_error_of_its_own() -> None:
    with pytest.raises(RuntimeError, match=r"Type not supported: Float8_e8m0fnu"):
        torch.zeros(1, dtype=torch.float8_e8m0fnu).to(DEVICE)


@pytest.mark.parametrize(
    "path", sorted(path for path in DATA.iterdir() if path.name != WITHOUT_DTYPE), ids=lambda path: path.name
)
def test_weights_are_dequantized_as_on_the_cpu(path: Any) -> None:
    model = load_model(path)
    layers = {name: each for name, each in model.named_modules() if isinstance(each, Layer) and "layers.0." in name}
    expected = {name: layer.dequantize() for name, layer in layers.items()}
    for name, layer in layers.items():
        found = layer.to(DEVICE).dequantize().cpu()
        assert torch.equal(found, expected[name]), name


@pytest.mark.parametrize("kind", ["qkv", "merged", "column", "row", "replicated"])
def test_divided_layers_compute_what_they_computed(kind: str) -> None:
    layer: Any = fill(make_linear(kind))
    expected = layer(X)
    qload.shard_model(layer.to(DEVICE), MESH, backend=XlaBackend)
    assert torch.allclose(layer(X.to(DEVICE)).cpu(), expected, atol=1e-4)
    marked = {name: spec_of(each) for name, each in layer.named_parameters()}
    assert any("devices=" in spec for spec in marked.values())
    if kind == "qkv":
        assert marked["q_proj.weight"] == "{devices=[4,1]0,1,2,3}"
        assert marked["k_proj.weight"] == "{devices=[2,1,2]0,1,2,3 last_tile_dim_replicate}"
    if kind == "row":
        assert marked == {"weight": "{devices=[1,4]0,1,2,3}", "bias": "{replicated}"}


@pytest.mark.parametrize("name", ["base", "gptq-4bit-g32-sym-descact"])
def test_divided_models_compute_what_they_computed(name: str) -> None:
    path = DATA / name
    ids, model = read_reference(path).input_ids, load_llama(path)
    with torch.inference_mode():
        expected = model(ids)
    qload.shard_model(model.to(DEVICE), MESH, axis="tp", backend=XlaBackend)
    with torch.no_grad():
        found = model(ids.to(DEVICE)).cpu()
    assert relative_error(found, expected) < 1e-5


def test_tied_tables_stay_tied() -> None:
    model, ids = make_tied(65, 64), torch.arange(65)[None]
    expected = model(ids)
    model = model.to(DEVICE)
    qload.shard_model(model, MESH, backend=XlaBackend)
    assert relative_error(model(ids.to(DEVICE)).cpu(), expected) < 1e-5
    assert model.head._parameters["weight"] is model.table._parameters["weight"]
    assert spec_of(model.table.get_parameter("weight")) == "{devices=[4,1]0,1,2,3}"


def test_what_cannot_be_divided_is_refused() -> None:
    layer: Any = fill(make_linear("column"))
    with pytest.raises(ModelError, match=r"not on a device of the mesh.*expected xla, found cpu"):
        qload.shard_model(layer, MESH, backend=XlaBackend)
    layer = layer.to(DEVICE)
    with pytest.raises(ParallelError, match=r"no such axis.*expected tp, found dp"):
        qload.shard_model(layer, MESH, axis="dp", backend=XlaBackend)
    with pytest.raises(ModelError, match=r"over an XLA mesh.*found int"):
        qload.shard_model(layer, 4, backend=XlaBackend)
    uneven = make_refused("uneven").to(DEVICE)
    with pytest.raises(ShardError, match=r"second: 6 rows of the layer cannot be divided by 4"):
        qload.shard_model(uneven, MESH, backend=XlaBackend)
    qload.shard_model(layer, MESH, backend=XlaBackend)
    with pytest.raises(ModelError, match=r"divided already"):
        qload.shard_model(layer, MESH, backend=XlaBackend)
