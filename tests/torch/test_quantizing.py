"""Quantizing while loading: the tensors that the producers' own tools make, cut as every rank needs them."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import copy_checkpoint, edit_tensors
from safetensors.torch import save_file
from samples import DATA, DEMO, WIDER, make_quantization, read_config, relative_error
from strangers import make_rows, registry_with
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import qload
from qload import Registry
from qload.errors import CheckpointError, MethodConflictError, MethodError, PluginError
from qload.hookspecs import Capabilities, MethodInfo
from qload.torch import (
    ColumnParallelLinear,
    Layer,
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
)
from qload.torch.parallel import Group

BASE, MIXTURE = DATA / "base", DATA / "base-qwen3moe"

MADE_WITHOUT_DATA = {
    "bnb-int8": "base",
    "ct-fp8-block": "base",
    "ct-fp8-dynamic": "base",
    "ct-mixed-fp8-w4": "base",
    "ct-mxfp4": "base",
    "ct-mxfp8": "base",
    "ct-qwen2-tied-w8a8": "base-qwen2",
    "ct-qwen3-tied-w4a16": "base-qwen3",
    "ct-qwen3moe-w4a16": "base-qwen3moe",
    "ct-w3a16-g128-sym": "base",
    "ct-w4a16-g128-asym": "base",
    "ct-w4a16-g128-sym": "base",
    "ct-w4a16-lmhead-embed": "base",
    "ct-w8a16-channel": "base",
    "ct-w8a8-int8-dynamic": "base",
    "hqq-3bit-g64": "base",
    "hqq-4bit-g64": "base",
    "hqq-4bit-g64-axis0": "base",
    "hqq-8bit-g128": "base",
    "quanto-qfloat8": "base",
    "quanto-qint4": "base",
    "quanto-qint8": "base",
    "torchao-float8wo": "base",
    "torchao-int8dyn-int8w": "base",
    "torchao-int8wo": "base",
    "torchao-intxwo-int4": "base",
}
"""Real checkpoints whose producer looked at the weights alone, and what it made them of."""


def load(path: Path, quantization: Any = None) -> PreTrainedModel:
    """A model whose layers keep their tensors as they are stored."""
    return qload.load(path, quantization=quantization, kernels=())


def pairs() -> list[tuple[Path, Path]]:
    folders = [Path(WIDER)] if WIDER else [DATA]
    made = [(folder / name, folder / base) for folder in folders for name, base in MADE_WITHOUT_DATA.items()]
    return [pair for pair in made if all(path.is_dir() for path in pair)]


@pytest.mark.parametrize(("made", "base"), pairs(), ids=lambda path: path.name)
def test_the_tensors_are_the_producers(made: Path, base: Path) -> None:
    expected = dict(load(made).named_parameters())
    # Those that have no section are made by the preset that they are named after.
    asked = read_config(made).get("quantization_config", made.name.split("-")[-1])
    found = dict(load(base, asked).named_parameters())
    assert len(found) > len(dict(load(base).named_parameters()))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(as_bytes(found[name]), as_bytes(tensor)), name


@pytest.mark.parametrize("name", ["gguf-q4_0", "gguf-q8_0"])
def test_blocks_are_those_of_the_file(name: str) -> None:
    if not WIDER or not (Path(WIDER) / name).is_dir():
        pytest.skip("the file is one of the further ones")
    expected = dict(load(Path(WIDER) / name).named_parameters())
    model = load(BASE, name.split("-")[-1])
    made = [key for key, _ in model.named_parameters() if key.endswith("weight_quantized")]
    assert len(made) == 14
    assert all(torch.equal(model.get_parameter(key), expected[key]) for key in made)


def test_doubly_quantized_scales_are_a_code_away_at_most() -> None:
    """bitsandbytes' implementation for processors looks the codes of scales up in a table that is not fine enough."""
    expected = load(DATA / "bnb-nf4-dq")
    asked = read_config(DATA / "bnb-nf4-dq")["quantization_config"]
    found = dict(load(BASE, asked).named_parameters())
    for name, tensor in expected.named_parameters():
        if name.endswith(".absmax"):
            difference = (found[name].int() - tensor.int()).abs()
            assert int(difference.max()) <= 1
            assert float(difference.float().mean()) < 0.005
        else:
            assert torch.equal(as_bytes(found[name]), as_bytes(tensor)), name


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def test_nvfp4_is_the_producers_where_it_shares_no_global_scale() -> None:
    """Llmcompressor gives the modules that engines fuse one global scale: that of one of them."""
    made, base = (Path(WIDER or DATA) / name for name in ("ct-nvfp4", "base"))
    if not made.is_dir():
        pytest.skip("the checkpoint is one of the further ones")
    section = read_config(made)["quantization_config"]
    section["config_groups"]["group_0"]["input_activations"] = None
    expected = dict(load(made).named_parameters())
    found = dict(load(base, section).named_parameters())
    scales = [name for name in found if name.endswith("weight_global_scale")]
    own = [name.removesuffix("_global_scale") for name in scales if torch.equal(found[name], expected[name])]
    assert len(scales) == 14
    assert len(own) >= 8
    for name in (f"{prefix}_{leaf}" for prefix in own for leaf in ("packed", "scale")):
        assert torch.equal(as_bytes(found[name]), as_bytes(expected[name])), name


def test_a_mixture_is_packed_expert_by_expert() -> None:
    model = qload.load(MIXTURE, quantization="int4")
    assert qload.report(model).bytes_in_memory < qload.report(qload.load(MIXTURE)).bytes_in_memory * 0.6
    assert set(qload.report(model).layers) == {"unquantized", "compressed-tensors int4 group 128"}


@pytest.mark.parametrize(("preset", "bound"), [("int8", 0.02), ("int4", 0.3), ("fp8", 0.09), ("w8a8", 0.03)])
def test_presets_stay_near_the_dense_model(preset: str, bound: float) -> None:
    ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        dense = qload.load(BASE, dtype=torch.float32)(ids).logits
        made = qload.load(BASE, dtype=torch.float32, quantization=preset)(ids).logits
    assert 0 < relative_error(made, dense) < bound


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("preset", ["int4", "int8", "fp8", "nvfp4"])
def test_every_rank_cuts_the_same_numbers(preset: str, size: int, registry: Registry) -> None:
    quantization = qload.choose_quantization(preset, registry=registry)
    whole = load_layers(quantization, 0, 1)
    for rank in range(size):
        share = load_layers(quantization, rank, size)
        for name, dim in (("down", 1), ("up", 0)):
            expected = qload.dequantize(whole[name]).chunk(size, dim)[rank]
            assert torch.equal(qload.dequantize(share[name]), expected), name
        parts = [part.chunk(size)[rank] for part in qload.dequantize(whole["gate_up"]).chunk(2)]
        assert torch.equal(qload.dequantize(share["gate_up"]), torch.cat(parts))


def load_layers(quantization: qload.Quantization, rank: int, size: int) -> dict[str, Layer]:
    torch.manual_seed(0)
    site = Site(quantization, "m", Group(rank, size))
    module = nn.Module()
    module.down = RowParallelLinear(512, 128, site.at("down"))
    module.up = ColumnParallelLinear(128, 512, site.at("up"))
    module.gate_up = MergedColumnParallelLinear(128, [("gate_proj", 512), ("up_proj", 512)], site.at("gate_up"))
    shapes = {"down": (128, 512), "up": (512, 128), "gate_proj": (512, 128), "up_proj": (512, 128)}
    weights = {f"m.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    qload.load_tensors(module, weights, quantization)
    return {name: layer for name, layer in module.named_children() if isinstance(layer, Layer)}


class Rows:
    """A method of int8 rows that quantizes, and counts the dense weights that are alive meanwhile."""

    def __init__(self) -> None:
        self.most = 0
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        if not weight.is_meta:
            self.alive.add(weight.untyped_storage())  # type: ignore[arg-type]
            self.most = max(self.most, len(self.alive))
        scale = weight.float().abs().amax(1).clamp_min(1e-12) / 127
        return {"values": (weight / scale[:, None]).round().to(torch.int8), "row_scale": scale}


def rows(**hooks: Any) -> Registry:
    info = MethodInfo("rows", None, Capabilities(embedding=True, quantize=True), presets={"rows8": {}})
    return registry_with(make_rows(**{"qload_method_info": lambda: info, **hooks}))


def test_one_dense_weight_at_a_time() -> None:
    counted = Rows()
    model = qload.load(BASE, quantization="rows8", registry=rows(qload_quantize=counted.quantize))
    gc.collect()
    assert (counted.most, len(counted.alive)) == (1, 0)
    assert qload.report(model).method == "rows"
    assert qload.report(model).bytes_read == stored_bytes()


def stored_bytes() -> int:
    path = BASE / "model.safetensors"
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (lambda weight: [weight], "returns list, not tensors by name"),
        (lambda weight: {"values": weight}, "leaves out row_scale"),
        (lambda weight: {**Rows().quantize(weight), "zero": weight}, "names zero; it declares values, row_scale"),
        (lambda weight: {**Rows().quantize(weight), "row_scale": 1.0}, "returns float for row_scale, not a tensor"),
        (lambda weight: {**Rows().quantize(weight), "values": weight}, "for values, not I8"),
        (lambda weight: {**Rows().quantize(weight.T)}, "for values, not I8"),
        (lambda weight: weight.none, "raises AttributeError"),
    ],
)
def test_answers_that_are_not_as_declared(answer: Any, fault: str) -> None:
    with pytest.raises(PluginError, match=fault) as caught:
        qload.load(BASE, quantization="rows8", registry=rows(qload_quantize=lambda weight: answer(weight)))
    assert ".weight" in caught.value.where


def test_a_capability_without_its_hook() -> None:
    with pytest.warns(UserWarning, match="lacks qload_quantize"), pytest.raises(PluginError):
        rows().method("rows")


@pytest.mark.parametrize(
    ("asked", "error", "text"),
    [
        ("int5", MethodError, r"no such preset \(found 'int5'\); ask for one of: .*int4"),
        ({"bits": 4}, MethodError, "names no quant_method"),
        ({"quant_method": "awq"}, MethodError, "awq.*ask for one of: .*int4"),
        ({"quant_method": "fp8", "weight_block_size": [1]}, MethodError, "refuses the config: weight_block_size"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, MethodError, "static inputs need calibration data"),
        ({"quant_method": "magic"}, MethodError, "magic"),
    ],
)
def test_what_cannot_be_asked_for(asked: Any, error: type[Exception], text: str, registry: Registry) -> None:
    with pytest.raises(error, match=text):
        qload.load(BASE, quantization=asked, registry=registry)


def test_two_methods_with_one_preset() -> None:
    info = MethodInfo("rows", None, Capabilities(embedding=True, quantize=True), presets={"int4": {}})
    registry = registry_with(make_rows(qload_method_info=lambda: info, qload_quantize=Rows().quantize))
    with pytest.raises(MethodConflictError, match="int4"):
        qload.choose_quantization("int4", registry=registry)


def test_a_quantized_checkpoint_is_not_quantized_anew(registry: Registry) -> None:
    with pytest.raises(MethodError, match="quantized already"):
        qload.load(DEMO, quantization="int4", registry=registry)


def test_dense_weights_that_are_not_as_they_should_be(tmp_path: Path) -> None:
    folder = copy_checkpoint(BASE, tmp_path / "broken")

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(5, 5)

    edit_tensors(folder, change)
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder, quantization="int4")
    assert {(fault.code, fault.where) for fault in caught.value.findings} == {
        ("QL201", "model.layers.0.mlp.up_proj.weight"),
        ("QL307", "model.layers.1.mlp.up_proj.weight"),
    }


def test_weights_that_are_not_numbers_are_found(tmp_path: Path) -> None:
    folder = copy_checkpoint(BASE, tmp_path / "broken")

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"].fill_(float("nan"))

    edit_tensors(folder, change)
    with pytest.raises(CheckpointError, match=r"QL501.*up_proj\.weight_scale"):
        qload.load(folder, quantization="int4")


def test_layers_whose_weights_are_stored_transposed_stay_dense(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path)
    ids = torch.arange(8)[None]
    found = qload.load(tmp_path, quantization="int4")(ids).logits
    assert torch.allclose(found, model.eval()(ids).logits, atol=1e-5)


def test_fp8_is_transformers_quantizer_of_what_it_was_given(registry: Registry) -> None:
    """Transformers 5.17 rounds the weights to E4M3 without a scale before it quantizes them by blocks."""
    reference = Path(WIDER or DATA) / "hf-fp8-block"
    if not reference.is_dir():
        pytest.skip("the checkpoint is one of the further ones")
    expected = load(reference)
    folder = {name: tensor.detach() for name, tensor in qload.load(BASE).named_parameters()}
    quantization = qload.choose_quantization("fp8", registry=registry)
    for name, layer in expected.named_modules():
        if isinstance(layer, Layer) and layer.scheme is not None:
            rows, columns = layer.geometry.out_features, layer.geometry.in_features
            made = ReplicatedLinear(columns, rows, Site(quantization, "m"))
            weight = folder[f"{name}.weight"].to(torch.float8_e4m3fn).bfloat16()
            qload.load_tensors(made, {"m.weight": weight}, quantization, kernels=())
            for leaf, tensor in layer.named_parameters():
                assert torch.equal(as_bytes(made.get_parameter(leaf)), as_bytes(tensor)), name


@pytest.mark.parametrize("divides", [False, True])
@pytest.mark.parametrize("block", [None, [64, 32]])
def test_fp8_of_odd_sizes_is_within_half_a_step(block: list[int] | None, divides: bool, registry: Registry) -> None:
    torch.manual_seed(0)
    weight = torch.randn(100, 80)
    weight[64:, 64:] = 0
    section = {"quant_method": "fp8", "weight_block_size": block}
    section |= {"weight_scale_semantics": "inverse"} if divides and block else {}
    quantization = qload.choose_quantization(section, registry=registry)
    layer = ReplicatedLinear(80, 100, Site(quantization, "m"))
    qload.load_tensors(layer, {"m.weight": weight}, quantization)
    # E4M3 keeps four significant bits, and below 2**-6 of its scale steps of 2**-9.
    assert bool(((qload.dequantize(layer) - weight).abs() <= weight.abs() / 16 + weight.abs().max() / 448 / 512).all())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("preset", ["int4", "int8", "fp8", "nvfp4"])
def test_strips_are_the_whole(
    preset: str, symmetric: bool, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantization = qload.choose_quantization(preset, registry=registry)
    if not symmetric:
        if preset in ("fp8", "nvfp4"):
            return
        weights = {"num_bits": int(preset[-1]), "symmetric": False, "strategy": "group", "group_size": 32}
        groups = {"g": {"targets": ["Linear"], "weights": weights}}
        section = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
        quantization = qload.choose_quantization(section, registry=registry)
    weight = {"m.weight": torch.randn(300, 96, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)}
    found = []
    for size in (1 << 20, 1 << 12, 1):
        monkeypatch.setattr("qload.torch.strips.STRIP", size)
        layer = ReplicatedLinear(96, 300, Site(quantization, "m", dtype=torch.bfloat16))
        qload.load_tensors(layer, weight, quantization)
        found.append(qload.dequantize(layer))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_model_of_ones_own(tmp_path: Path, registry: Registry) -> None:
    save_file({"m.weight": torch.randn(64, 128)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    quantization = qload.choose_quantization("int8", registry=registry)
    module = nn.ModuleDict({"m": ReplicatedLinear(128, 64, Site(quantization, "m"))})
    report = qload.load_weights(module, tmp_path, quantization=quantization)
    assert report.layers == {"compressed-tensors int8 channel": 1}
    assert make_quantization({"quant_method": "fp8"}, registry).is_to_be_made is False
