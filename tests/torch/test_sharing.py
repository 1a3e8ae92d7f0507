"""Models of a user's own whose tensors have several names: each is read once, and stays one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import WEIGHTS, edit_tensors
from llama import Llama
from safetensors.torch import load_file, save_file
from samples import DATA, DEMO, read_config
from strangers import make_rows, registry_with, write_rows
from torch import Tensor, nn

import qload
from qload.declare import packed
from qload.errors import CheckpointError, ModelError
from qload.layout import in_, out
from qload.quantization import unquantized
from qload.torch import ParallelLMHead, ReplicatedLinear, Site, VocabParallelEmbedding

IDS = torch.tensor([[1, 2, 3]])
TIED = DATA / "ct-qwen2-tied-w8a8"


def drop_head(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("lm_head.")]:
            del tensors[name]

    edit_tensors(folder, change)


def make_tied(path: Path) -> Any:
    model: Any = Llama(path, qload.read_quantization(path))
    model.lm_head.tie(model.model.embed_tokens)
    return model


def test_a_tied_head_is_not_looked_for_in_the_checkpoint(broken: Callable[[str], Path]) -> None:
    for name in ("ct-w4a16-lmhead-embed", DEMO.name):
        folder = broken(name)
        drop_head(folder)
        model = make_tied(folder)
        qload.load_weights(model, folder, ignore=["QL210"])
        table = model.model.embed_tokens
        assert model.lm_head.table is table
        for leaf in table.specs:
            assert getattr(model.lm_head, leaf) is getattr(table, leaf)
        hidden = torch.randn(2, 256)
        assert torch.allclose(model.lm_head(hidden), hidden @ qload.dequantize(table).float().T, atol=1e-4)


def test_a_head_that_is_stored_though_tied_is_left_out_with_a_warning() -> None:
    model = make_tied(DEMO)
    report = qload.load_weights(model, DEMO)
    assert [(finding.code, finding.where) for finding in report.findings] == [("QL206", "lm_head.weight")]
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_head_has_a_bias_of_its_own(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    drop_head(folder)
    site, bias = Site(qload.read_quantization(folder)), torch.randn(1024)
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.bias": bias}))
    model: Any = nn.Module()
    rows, hidden_size = (read_config(folder)[key] for key in ("vocab_size", "hidden_size"))
    model.table = VocabParallelEmbedding(rows, hidden_size, site.at("model.embed_tokens"))
    model.lm_head = ParallelLMHead(rows, hidden_size, site.at("lm_head"), bias=True)
    model.lm_head.tie(model.table)
    for _ in range(2):
        qload.load_weights(model, folder, ignore=["QL210"])
        hidden = torch.randn(2, hidden_size)
        expected = hidden @ qload.dequantize(model.table).T + bias
        assert torch.allclose(model.lm_head(hidden), expected, atol=1e-4)


def test_a_head_is_tied_to_a_table_of_its_own_shape_alone() -> None:
    site = Site(qload.read_quantization(DEMO))
    table, head = VocabParallelEmbedding(128, 256, site.at("a")), ParallelLMHead(128, 512, site.at("lm_head"))
    with pytest.raises(ModelError, match=r"lm_head: .*expected 128 x 512, found 128 x 256"):
        head.tie(table)


def test_a_plain_head_computes_with_the_quantized_table_that_it_is_tied_to(tmp_path: Path) -> None:
    write_rows(tmp_path)
    drop_head(tmp_path)
    registry = registry_with(make_rows())
    model: Any = Llama(tmp_path, qload.read_quantization(tmp_path, registry=registry))
    assert model.lm_head.scheme is None
    model.lm_head.tie(model.model.embed_tokens)
    qload.load_weights(model, tmp_path, registry=registry, ignore=["QL210"])
    hidden = torch.randn(2, 256)
    expected = hidden @ qload.dequantize(model.model.embed_tokens).T
    assert torch.allclose(model.lm_head(hidden), expected, atol=1e-3)


def test_a_head_shares_what_a_hook_made_of_the_table() -> None:
    model = make_tied(DEMO)
    table, head = model.model.embed_tokens, model.lm_head
    table.derive(packed("repacked", out(), in_(), dtypes=("I8",)), torch.zeros(1024, 256, dtype=torch.int8))
    head.share(table)
    assert head.pieces()[0].repacked.data_ptr() == table.repacked.data_ptr()


def test_loading_twice_keeps_the_tie() -> None:
    model = make_tied(DEMO)
    for _ in range(2):
        qload.load_weights(model, DEMO)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model(IDS).isfinite().all()


class Plain(nn.Module):
    """A plain head on a plain table; and a buffer that no checkpoint stores."""

    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight
        self.register_buffer("computed", torch.arange(3), persistent=False)
        self.register_buffer("later", torch.empty(2, device="meta"), persistent=False)


@pytest.mark.parametrize("stored", ["model.embed_tokens.weight", "lm_head.weight"])
def test_parameters_that_are_one_object_stay_one(broken: Callable[[str], Path], stored: str) -> None:
    folder = broken(DEMO.name)
    kept: dict[str, Tensor] = {}

    def change(tensors: dict[str, Tensor]) -> None:
        kept[stored] = tensors["model.embed_tokens.weight"]
        tensors.pop("lm_head.weight")
        tensors.pop("model.embed_tokens.weight")
        tensors |= kept

    edit_tensors(folder, change)
    model: Any = Plain(read_config(folder)).to(torch.bfloat16)
    report = qload.load_weights(model, folder, ignore=["QL210"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, kept[stored])
    assert report.bytes_read == kept[stored].nbytes
    assert report.bytes_in_memory == kept[stored].nbytes + model.computed.nbytes


def test_a_prefix_is_before_the_names_of_what_is_shared_too(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    table = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]
    kept = {f"inner.{name}": table.clone() for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(kept, folder / WEIGHTS)
    model: Any = Plain(read_config(folder)).to(torch.bfloat16)
    report = qload.load_weights(model, folder, prefix="inner.")
    assert [(finding.code, finding.where) for finding in report.findings] == [("QL206", "inner.lm_head.weight")]
    # Of the two the one that is stored is read.
    del kept["inner.model.embed_tokens.weight"]
    save_file(kept, folder / WEIGHTS)
    assert qload.load_weights(model, folder, prefix="inner.").findings == ()


def test_a_parameter_that_is_a_layers_own_is_read_as_the_layers() -> None:
    model: Any = nn.Module()
    quantization = unquantized(qload.Registry.discover())
    layer: Any = ReplicatedLinear(4, 2, Site(quantization, "layer"))
    model.first = nn.Module()
    model.layer = layer
    model.first.weight = layer._parameters["weight"]
    weight = torch.randn(2, 4)
    report = qload.load_tensors(model, {"first.weight": torch.zeros(2, 4), "layer.weight": weight}, quantization)
    assert [(finding.code, finding.where) for finding in report.findings] == [("QL206", "first.weight")]
    assert model.first.weight is layer.weight
    assert torch.equal(model.first.weight, weight)


def test_buffers_that_are_one_object_stay_one() -> None:
    model: Any = nn.Module()
    for name in ("first", "second"):
        child = nn.Module()
        child.register_buffer("table", torch.zeros(3) if name == "first" else model.first.table)
        model.add_module(name, child)
    quantization = qload.read_quantization(DEMO)
    qload.load_tensors(model, {"second.table": torch.arange(3.0)}, quantization)
    assert model.first.table is model.second.table
    assert dict(model.named_parameters()) == {}
    assert model.first.table.tolist() == [0, 1, 2]


def test_neither_name_is_stored(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    drop_head(folder)
    edit_tensors(folder, lambda tensors: tensors.update({"table": tensors.pop("model.embed_tokens.weight")}))
    with pytest.raises(CheckpointError) as caught:
        qload.load_weights(Plain(read_config(folder)), folder, ignore=["QL210"])
    found = [finding.where for finding in caught.value.findings if finding.code == "QL201"]
    assert found == ["model.embed_tokens.weight"]


def test_pickled_weights_are_read_into_a_model_of_ones_own_if_they_may_be(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    weights = load_file(folder / WEIGHTS)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    model: Any = Plain(read_config(folder)).to(torch.bfloat16)
    with pytest.raises(CheckpointError, match="unpickling can run code"):
        qload.load_weights(model, folder, ignore=["QL210"])
    qload.load_weights(model, folder, ignore=["QL210"], allow_pickle=True)
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])


def test_a_tied_head_computes_as_its_table_is_told_to() -> None:
    for switch in (True, False):
        model = qload.load(TIED, quantize_activations=switch)
        assert model.get_output_embeddings().quantize_activations is switch
