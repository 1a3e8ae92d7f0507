"""Models of more than text, and without a language model's head: every tensor, and what they compute."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import DELTA, EXPERTS, IDS, LOCAL, MARIAN, SIZES, compute, quantize
from torch import Tensor, nn

import qload

IMAGES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
PATCHES = {
    "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "patch_size": 8, "out_hidden_size": 64,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip
TOKENS = {
    "image_token_id": 100, "video_token_id": 101, "vision_start_token_id": 102, "vision_end_token_id": 103,
}  # fmt: skip
ENCODER = {key: value for key, value in SIZES.items() if key not in ("head_dim", "num_key_value_heads")}
ERNIE = {
    "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": [32, 32], "moe_num_shared_experts": 1,
    "mlp_layer_types": ["dense", "sparse"],
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 10000.0},
}  # fmt: skip
LLAMA4 = {
    "vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64, "pixel_shuffle_ratio": 0.5,
}  # fmt: skip
WHISPER = {
    **MARIAN, "vocab_size": 128, "num_mel_bins": 16, "max_source_positions": 16, "max_target_positions": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SOUND = {"input_features": torch.linspace(-1, 1, 512).reshape(1, 16, 32), "decoder_input_ids": IDS}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    # two towers, under names on disk of an older model
    "LlavaForConditionalGeneration": (
        "LlavaConfig",
        {
            "text_config": {**SIZES, "model_type": "llama"},
            "vision_config": {**IMAGES, "model_type": "clip_vision_model"},
            "image_token_index": 100,
        },
    ),
    # a text model's ties and scaled embedding, one floor down
    "Gemma3ForConditionalGeneration": (
        "Gemma3Config",
        {"text_config": SIZES, "vision_config": IMAGES, "mm_tokens_per_image": 4, "image_token_index": 100},
    ),
    # experts that are stored one by one, below a text model of a model
    "Qwen3_5MoeForConditionalGeneration": (
        "Qwen3_5MoeConfig",
        {
            "text_config": {**SIZES, **EXPERTS, **DELTA, "shared_expert_intermediate_size": 32},
            "vision_config": PATCHES,
            **TOKENS,
        },
    ),
    # a buffer of complex numbers that no checkpoint stores
    "Llama4ForConditionalGeneration": (
        "Llama4Config",
        {
            "text_config": {**SIZES, **LOCAL, "num_experts_per_tok": 1, "intermediate_size_mlp": 96},
            "vision_config": {**IMAGES, **LLAMA4},
            "image_token_index": 100,
        },
    ),
    # one list of experts on disk that is two stacks in the model, and gates transposed
    "Ernie4_5_VLMoeForConditionalGeneration": (
        "Ernie4_5_VLMoeConfig",
        {
            "text_config": {**SIZES, **ERNIE},
            "vision_config": {**PATCHES, "text_hidden_size": 64},
            **TOKENS,
        },
    ),
    "WhisperForConditionalGeneration": ("WhisperConfig", WHISPER),  # a head tied to the decoder's embedding, sound
    "BertForSequenceClassification": ("BertConfig", ENCODER),  # a head that is no language model's
    "Qwen3Model": ("Qwen3Config", SIZES),  # no head, and names without the base model's prefix
}


@pytest.fixture(params=MODELS)
def made(request: pytest.FixtureRequest) -> Any:
    config, settings = MODELS[request.param]
    torch.manual_seed(0)
    return getattr(transformers, request.param)(getattr(transformers, config)(**settings)).eval()


def inputs_of(model: Any) -> Mapping[str, Tensor]:
    return SOUND if model.main_input_name == "input_features" else {"input_ids": IDS}


def test_plain_models_are_transformers(made: Any, tmp_path: Path) -> None:
    made.save_pretrained(tmp_path)
    theirs, ours = type(made).from_pretrained(tmp_path).eval(), qload.load(tmp_path)
    assert type(ours) is type(made)
    assert torch.allclose(compute(ours, **inputs_of(made)), compute(theirs, **inputs_of(made)), atol=1e-5)
    expected, found = _tensors(theirs), _tensors(ours)
    assert {name for name in expected.keys() - found.keys() if ".experts." not in name} == set()
    assert all(torch.equal(expected[name], found[name]) for name in expected.keys() & found.keys())
    assert qload.validate(tmp_path).findings == ()


def test_quantized_models_are_the_packages(made: Any, tmp_path: Path) -> None:
    expected = quantize(made, tmp_path, **inputs_of(made))
    model = qload.load(tmp_path)
    assert torch.allclose(compute(model, **inputs_of(made)), expected, atol=1e-5)
    assert any("int4 group 16" in label for label in qload.report(model).layers)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    buffers = model.named_buffers(remove_duplicate=False)
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(buffers)}
