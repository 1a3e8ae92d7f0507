"""What a GPU holds and computes is what the host does; these run where there is one."""

from pathlib import Path

import pytest
import torch
from comparison import compute, load
from samples import DATA, DEMO, read_reference, relative_error, supported

import qload
from qload.quantization import unquantized
from qload.torch import Layer, Site, VocabParallelEmbedding

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

names = pytest.mark.parametrize("path", supported(), ids=lambda path: path.name)


@names
def test_every_weight_is_the_hosts(path: Path) -> None:
    """Unpacking is of integers, and each product is rounded once, so that not a bit may differ."""
    host, device = load(path), load(path, device="cuda")
    assert {tensor.device.type for tensor in (*device.parameters(), *device.buffers())} == {"cuda"}
    for name, layer in host.named_modules():
        if isinstance(layer, Layer):
            assert torch.equal(qload.dequantize(device.get_submodule(name)).cpu(), qload.dequantize(layer)), name


@names
def test_logits_are_the_hosts(path: Path) -> None:
    ids = read_reference(path).input_ids
    assert relative_error(compute(load(path, device="cuda"), ids.cuda()).cpu(), compute(load(path), ids)) < 1e-3


@pytest.mark.parametrize("name", [DEMO.name, "gptq-4bit-g32-sym-descact"])
def test_the_last_gpu_of_several(name: str) -> None:
    device = f"cuda:{torch.cuda.device_count() - 1}"
    model = qload.load(DATA / name, device=device, dtype=torch.float16)
    expected = qload.load(DATA / name, dtype=torch.float16)
    for key, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key].cpu(), tensor), key


def test_the_host_does_not_wait_for_ids_to_be_looked_up(registry: qload.Registry) -> None:
    quantization = unquantized(registry)
    table, weight = VocabParallelEmbedding(130, 8, Site(quantization, "t"), added=2), torch.randn(130, 8)
    qload.load_tensors(table, {"t.weight": weight}, quantization, device="cuda")
    ids = torch.tensor([[0, 129], [131, 64]]).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = table(ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), torch.cat([weight, torch.zeros(2, 8)])[ids.cpu()])


@pytest.mark.parametrize(("reader", "module"), [("runai", "runai_model_streamer"), ("fastsafetensors",) * 2])
def test_readers_of_other_packages(reader: str, module: str) -> None:
    pytest.importorskip(module)
    before = torch.cuda.current_device()
    model, expected = (qload.load(DEMO, device="cuda", reader=name) for name in (reader, "buffered"))
    assert torch.cuda.current_device() == before
    for key, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
