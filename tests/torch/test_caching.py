"""Keys and values rounded as a quantized cache would have them, held against compressed-tensors' own cache."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from edits import copy_checkpoint, edit_config, edit_tensors
from samples import DATA
from torch import Tensor
from transformers import AutoModelForCausalLM

import qload
from qload.answers import AnswerError
from qload.torch import Layer
from qload.torch.hooks import TensorReader
from qload.torch.models.caching import RoundingCache, count_heads, has_cache

IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 8, 9], [7, 9, 3, 2, 3, 8, 4, 6]])
LAYERS, HEADS = 2, 2

SCHEMES: list[dict[str, Any]] = [
    {"num_bits": 8, "type": "float", "strategy": "tensor"},
    {"num_bits": 8, "type": "float", "strategy": "attn_head"},
    {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": False},
    {"num_bits": 4, "type": "int", "strategy": "attn_head", "symmetric": False},
    {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": True},
    {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 16, "dynamic": True},
    {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "dynamic": True,
     "scale_dtype": "torch.uint8"},
    {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local",
     "scale_dtype": "torch.float8_e4m3fn"},
]  # fmt: skip


def make_scales(scheme: dict[str, Any]) -> dict[str, Tensor]:
    """What a calibration would leave in the checkpoint."""
    if scheme.get("dynamic") is True:
        return {}
    shape = (HEADS, 1, 1) if scheme["strategy"] == "attn_head" else (1,)
    tensors = {}
    for layer in range(LAYERS):
        for number, name in enumerate(("k", "v")):
            prefix = f"model.layers.{layer}.self_attn.{name}"
            if scheme.get("dynamic") == "local":
                tensors[f"{prefix}_global_scale"] = torch.tensor([200.0 + number])
                continue
            steps = torch.arange(1, shape[0] + 1).reshape(shape)
            tensors[f"{prefix}_scale"] = (steps * 0.02 * (layer + number + 1)).to(torch.bfloat16)
            if not scheme.get("symmetric", True):
                tensors[f"{prefix}_zero_point"] = torch.full(shape, 3 - number, dtype=torch.int8)
    return tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_checkpoint(DATA / "base", tmp_path / "cache")


def write(folder: Path, scheme: dict[str, Any]) -> None:
    section = {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": scheme}
    edit_config(folder, lambda config: config.update(quantization_config=section))
    edit_tensors(folder, lambda tensors: tensors.update(make_scales(scheme)))


def load_theirs(scheme: dict[str, Any]) -> Any:
    """The package's own model, with the same scales."""
    model = AutoModelForCausalLM.from_pretrained(DATA / "base", dtype=torch.bfloat16)
    config = QuantizationConfig(config_groups={}, kv_cache_scheme=scheme, quantization_status="frozen")
    apply_quantization_config(model, config, show_progress=False)
    for name, value in make_scales(scheme).items():
        model.get_parameter(name).data = value
    return model.eval()


def compute(model: Any, ids: Tensor = IDS, **options: Any) -> Any:
    with torch.inference_mode():
        return model(ids, **options)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: "-".join(map(str, scheme.values())))
def test_keys_and_values_are_rounded_as_in_the_package(scheme: dict[str, Any], folder: Path) -> None:
    write(folder, scheme)
    assert qload.validate(folder).ok
    model, theirs = qload.load(folder), load_theirs(scheme)
    found = compute(model).logits
    assert torch.equal(found, compute(theirs).logits)
    assert not torch.equal(found, compute(qload.load(DATA / "base")).logits)
    # Token by token, with a cache that keeps what was rounded.
    first, their_first = compute(model, IDS[:, :5], use_cache=True), compute(theirs, IDS[:, :5], use_cache=True)
    rest = compute(model, IDS[:, 5:], past_key_values=first.past_key_values)
    assert torch.equal(rest.logits, compute(theirs, IDS[:, 5:], past_key_values=their_first.past_key_values).logits)
    for use_cache in (True, False):
        assert torch.equal(compute(model, use_cache=use_cache).logits, found)


def test_they_are_left_alone_where_activations_are(folder: Path) -> None:
    write(folder, SCHEMES[0])
    plain = compute(qload.load(DATA / "base")).logits
    model = qload.load(folder, quantize_activations=False)
    assert torch.equal(compute(model).logits, plain)
    assert float(model.get_parameter("model.layers.0.self_attn.kv_scales.k_scale")) == pytest.approx(0.02, rel=1e-2)


def test_a_model_that_rounds_can_be_generated_with_copied_and_saved(folder: Path, tmp_path: Path) -> None:
    write(folder, SCHEMES[0])
    model = qload.load(folder)
    expected = compute(model).logits
    generated = model.generate(IDS, max_new_tokens=4, do_sample=False)  # type: ignore[operator]
    assert generated.shape == (2, 12)
    assert torch.equal(compute(copy.deepcopy(model)).logits, expected)
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(compute(torch.load(tmp_path / "model.pt", weights_only=False)).logits, expected)
    assert pickle.loads(pickle.dumps(model)) is not None


def test_scales_of_another_number_of_heads_are_a_fault(folder: Path) -> None:
    write(folder, SCHEMES[1])

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.k_scale"] = torch.ones(3, 1, 1)
        del tensors["model.layers.1.self_attn.v_scale"]

    edit_tensors(folder, change)
    with pytest.raises(qload.CheckpointError) as caught:
        qload.load(folder)
    found = {(finding.code, finding.where) for finding in caught.value.findings}
    assert found == {
        ("QL307", "model.layers.0.self_attn.k_scale"),
        ("QL201", "model.layers.1.self_attn.v_scale"),
    }


def test_what_a_cache_hook_answers_is_two_tensors() -> None:
    read, pair = TensorReader((2,), count=2), (torch.ones(2), torch.zeros(2))
    assert read(pair) == pair
    with pytest.raises(AnswerError, match="returns list, not a tuple of 2 tensors"):
        read(list(pair))
    with pytest.raises(AnswerError, match="returns the shape"):
        read((torch.ones(2), torch.ones(3)))


class Cache:
    length = 5

    def update(self, keys: Tensor, values: Tensor, layer: int, *, step: int) -> tuple[Tensor, Tensor]:
        return keys + layer, values + step


class Attention(torch.nn.Module):
    def forward(self, past_key_value: object = None) -> None:
        pass


def test_a_stand_in_is_the_cache_but_for_what_goes_in(folder: Path) -> None:
    write(folder, SCHEMES[0])
    scales = qload.load(folder).get_submodule("model.layers.0.self_attn.kv_scales")
    assert isinstance(scales, Layer)
    keys = torch.full((1, HEADS, 3, 4), 0.29, dtype=torch.bfloat16)
    cache = RoundingCache(Cache(), scales)
    assert cache.length == 5
    rounded, _ = RoundingCache(None, scales).update(keys, keys)
    assert not torch.equal(rounded, keys)
    assert torch.equal(cache.update(keys, keys, 2, step=1)[0], rounded + 2)
    with pytest.raises(AttributeError):
        _ = RoundingCache(None, scales).length


def test_only_what_is_handed_a_cache_has_one() -> None:
    assert has_cache(Attention())
    assert not has_cache(torch.nn.Linear(1, 1))
    assert count_heads(Attention()) == 1
