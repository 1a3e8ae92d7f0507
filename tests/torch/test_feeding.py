"""Layers loaded by hand, tensor by tensor, hold what a load by plan makes, on every rank, for every format."""

import copy
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from llama import Llama
from samples import DATA, DEMO, is_sound, is_swept, read_config, samples
from torch import Tensor, nn

import qload
from qload import Quantization, Registry
from qload.errors import CheckpointError, ParameterError, ShardError
from qload.geometry import Kind, Sharding, column, expert_parallel, row, vocabulary
from qload.layout import Interval
from qload.plan import Copy
from qload.torch import Layer, MergedColumnParallelLinear, ParallelLMHead, Site, TypedParameter, VocabParallelEmbedding
from qload.torch.dtypes import torch_dtype
from qload.torch.loading.checkpoints import open_for_loading
from qload.torch.loading.orders import Order
from qload.torch.parallel import Group

SOUND = [path for path in samples() if is_sound(path) and is_swept(path)]
LLAMAS = [path for path in SOUND if read_config(path).get("model_type") == "llama"]
SIZES = (1, 2, 4)
SHARDINGS: dict[str, Sharding] = {"column": column, "row": row, "experts": expert_parallel, "vocabulary": vocabulary()}


@cache
def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole, as its file has it."""
    checkpoint, reader = open_for_loading(path, Registry.discover(), torch.device("cpu"))
    found = {}
    for name, entry in checkpoint.tensors.items():
        region = tuple(Interval(0, size) for size in entry.shape)
        found[name] = torch.empty(entry.shape, dtype=torch_dtype(entry.dtype))
        if found[name].numel():
            list(reader.read([Order(Copy(entry, entry.shape, region, region), found[name], 0)]))
    reader.close()
    return found


def load_by_plan(path: Path, *layers: Layer) -> Layer:
    """Load the layers, all at once; returns the first one."""
    qload.load_weights(nn.ModuleList(layers), path, ignore=["QL210"], kernels=())
    return layers[0]


def load_by_hand(path: Path, layer: Layer) -> Layer:
    tensors = read_tensors(path)
    layer.allocate("cpu")
    for name in layer.places:
        if name in tensors:
            layer.load(name, tensors[name])
    layer.finish()
    return layer


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def check_same(found: Layer, expected: Layer) -> None:
    """Bit for bit the same parameters."""
    ours: dict[str, Any] = dict(found.named_parameters())
    theirs: dict[str, Any] = dict(expected.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(ours[name]), bits(tensor)), name
        assert type(tensor) is type(ours[name]) is TypedParameter
        assert tensor.missing == ours[name].missing == frozenset()


def layers_of(path: Path) -> list[Layer]:
    """A layer of each form in a checkpoint's model."""
    forms: dict[object, Layer] = {}
    model = qload.load(path, dtype=torch.float32, kernels=())
    for layer in (each for each in model.modules() if isinstance(each, Layer)):
        tied = getattr(layer, "table", None) is not None
        if not tied and layer.geometry.kind is not Kind.KV_CACHE:
            forms.setdefault((layer.treatment.label, layer.geometry, len(layer.sources)), layer)
    return list(forms.values())


def cut(layer: Layer, quantization: Quantization, sharding: Sharding, size: int) -> list[Layer]:
    """The layer of each rank, not loaded; none where it cannot be divided so."""
    groups = [Group(rank, size) for rank in range(size)]
    sites = [Site(quantization, layer.name, group, layer.dtype) for group in groups]
    try:
        return [Layer(layer.geometry, layer.sources, site, layer.treatment, sharding) for site in sites]
    except ShardError:
        return []


def shardings_of(layer: Layer) -> Iterator[str]:
    if layer.geometry.kind in (Kind.EMBEDDING, Kind.LM_HEAD):
        yield "vocabulary"
    else:
        yield from ("column", "row")
    if layer.geometry.experts is not None:
        yield "experts"


def gather(shares: list[Tensor], layer: Layer, sharding: str) -> Tensor:
    """The whole weight, of all ranks' shares."""
    if sharding != "column" or layer.geometry.interleaved:
        joined = torch.cat(shares, {"row": -1, "experts": 0}.get(sharding, -2))
        return joined[: layer.geometry.out_features] if sharding == "vocabulary" else joined
    # Heads that there are fewer of than ranks are on several of them.
    shares = shares[:: max(1, len(shares) // (layer.geometry.parts[0].heads or len(shares)))]
    sizes = [part.size // len(shares) for part in layer.geometry.parts]
    parts = zip(*(share.split(sizes, -2) for share in shares), strict=True)
    return torch.cat([torch.cat(part, -2) for part in parts], -2)


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.name)
def test_every_layer_of_every_format_is_the_same_by_hand(path: Path) -> None:
    quantization = qload.read_quantization(path)
    cases = [(layer, sharding, size) for layer in layers_of(path) for sharding in shardings_of(layer) for size in SIZES]
    ours = [cut(layer, quantization, SHARDINGS[sharding], size) for layer, sharding, size in cases]
    theirs = [cut(layer, quantization, SHARDINGS[sharding], size) for layer, sharding, size in cases]
    load_by_plan(path, *(layer for ranks in theirs for layer in ranks))
    for (whole, sharding, _), ranks, expected in zip(cases, ours, theirs, strict=True):
        for layer, other in zip(ranks, expected, strict=True):
            check_same(load_by_hand(path, layer), other)
        if ranks:
            shares = [layer.dequantize(torch.float32) for layer in ranks]
            assert torch.equal(gather(shares, whole, sharding), whole.dequantize(torch.float32))
    assert any(ours)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("path", LLAMAS, ids=lambda path: path.name)
def test_fused_layers_are_the_same_by_hand(path: Path, size: int) -> None:
    quantization = qload.read_quantization(path)
    for rank in range(size):
        try:
            ours, theirs = (Llama(path, quantization, Group(rank, size)) for _ in range(2))
        except (ShardError, CheckpointError):
            # It cannot be divided so, or its parts are quantized differently: tests of fused layers say which.
            assert rank == 0
            return
        qload.load_weights(theirs, path, ignore=["QL210"], kernels=())
        layers = dict(theirs.named_modules())
        for name, layer in ours.named_modules():
            if isinstance(layer, Layer):
                check_same(load_by_hand(path, layer), layers[name])


def gate_up(path: Path = DEMO, rank: int = 0, size: int = 1) -> Any:
    site = Site(qload.read_quantization(path), "model.layers.0.mlp.gate_up_proj", Group(rank, size))
    return MergedColumnParallelLinear(256, [("gate_proj", 512), ("up_proj", 512)], site)


def test_what_was_not_loaded_is_missing() -> None:
    layer, tensors = gate_up(), read_tensors(DEMO)
    layer.allocate("cpu")
    with pytest.raises(CheckpointError) as error:
        layer.finish()
    assert {finding.code for finding in error.value.findings} == {"QL201"}
    for name in layer.places:
        if name in tensors and not name.endswith("up_proj.weight_scale"):
            layer.load(name, tensors[name])
    with pytest.raises(CheckpointError, match=r"^model\.layers\.0\.mlp\.gate_up_proj: 1 fault.*up_proj\.weight_scale"):
        layer.finish()


def test_what_is_optional_goes_or_is_loaded_for_all_parts() -> None:
    path = DATA / "gptq-4bit-g128-asym"
    layer, tensors = gate_up(path), read_tensors(path)
    layer.allocate("cpu")
    required = [name for name in layer.places if name in tensors and not name.endswith("g_idx")]
    for name in required:
        layer.load(name, tensors[name])
    half = copy.deepcopy(layer)
    layer.finish()
    assert layer.g_idx is None
    half.load("model.layers.0.mlp.up_proj.g_idx", torch.arange(256, dtype=torch.int32) // 128)
    with pytest.raises(CheckpointError, match=r"1 fault .*QL201 model\.layers\.0\.mlp\.gate_proj\.g_idx"):
        half.finish()


def test_a_name_of_another_layer_is_refused() -> None:
    layer = gate_up()
    layer.allocate("cpu")
    with pytest.raises(
        ParameterError, match=r"expected a tensor of model\.layers\.0\.mlp\.gate_proj, .*found x\.weight"
    ):
        layer.load("x.weight", torch.zeros(1))


def test_what_is_stored_and_not_needed_is_passed_over() -> None:
    path = DATA / "ct-w4a16-g128-asym"
    layer = gate_up(path)
    layer.allocate("cpu")
    (name, *_) = (name for name, place in layer.places.items() if place.parameter not in layer.declared)
    assert layer.load(name, torch.zeros(2, dtype=torch.int64)) == 0


def test_layers_without_memory_are_refused() -> None:
    layer = gate_up()
    name = next(name for name in layer.places if name.endswith("weight_packed"))
    with pytest.raises(ParameterError, match=r"weight_packed.*meta device\); make .*layer\.allocate"):
        layer.load(name, read_tensors(DEMO)[name])
    layer.allocate("cpu")
    layer.set_tensor("weight_packed", None)
    with pytest.raises(ParameterError, match="no memory of its own"):
        layer.load(name, read_tensors(DEMO)[name])


def test_a_tied_head_is_loaded_with_its_table() -> None:
    path = DATA / "base"
    quantization = qload.read_quantization(path)
    config = read_config(path)
    table = VocabParallelEmbedding(
        config["vocab_size"], config["hidden_size"], Site(quantization, "model.embed_tokens")
    )
    head = ParallelLMHead(config["vocab_size"], config["hidden_size"], Site(quantization, "lm_head"))
    table.allocate("cpu")
    head.tie(table)
    with pytest.raises(ParameterError, match=r"lm_head\.weight.*shared with another layer"):
        head.load("lm_head.weight", torch.zeros(config["vocab_size"], config["hidden_size"]))
    head.finish()


def test_synchronize_is_called_after_each_copy() -> None:
    calls: list[int] = []
    layer, tensors = gate_up(), read_tensors(DEMO)
    layer.allocate("cpu")
    name = next(name for name in layer.places if name.endswith("weight_packed"))
    layer.load(name, tensors[name], synchronize=lambda: calls.append(1))
    assert len(calls) == 1
    landed: list[int] = []
    calls.clear()
    qload.load_weights(
        nn.ModuleList([gate_up()]),
        DEMO,
        ignore=["QL210"],
        progress=lambda progress: landed.append(len(calls)),
        synchronize=lambda: calls.append(1),
    )
    assert len(landed) > 4
    assert landed == list(range(1, len(landed) + 1))


def test_the_loading_that_the_docs_show() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    (code,) = re.findall(r"```python\n(from safetensors.*?)```", text, re.DOTALL)
    shown: dict[str, Any] = {"path": DEMO, "quantization": qload.read_quantization(DEMO)}
    exec(compile(code, "docs/models.md", "exec"), shown)
    check_same(shown["layer"], load_by_plan(DEMO, gate_up(rank=1, size=2)))
