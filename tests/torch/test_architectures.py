"""Architectures of many kinds: tiny models made and saved by transformers, and quantized by compressed-tensors.

Whatever a model's layers are called, tied to, stacked or fused into, what is loaded computes what transformers does.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, BertConfig, BertForMaskedLM

import qload
from qload.torch import Experts, ParallelLMHead

SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5 = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_heads": 4, "num_layers": 2}
MARIAN = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"layers": 2, "ffn_dim": 96, "attention_heads": 4}.items()
} | {"d_model": 64, "decoder_start_token_id": 1}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"mlp_bias": True, "attention_bias": True},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {},  # tied to an embedding that scales what it looks up
    "phi3": {},  # projections fused in the model itself
    "gpt2": GPT,  # convolutions in place of linear layers
    "gptj": {**GPT, "rotary_dim": 8},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},  # learned positions, a base model of another name
    "gpt_neox": {},
    "bloom": {"n_head": 4},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "cohere2": {},
    "olmo2": {},
    "mamba": {},  # no attention
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},  # parts finished by the whole model
    "hy_v4": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},  # reaches for a layer's weight
    "lfm2": {},  # short convolutions between attention
    "hrm_text": {},  # gate and up projections fused on disk, and separate in the model
    "qwen3_moe": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "mixtral": LOCAL,  # names on disk of an older model
    "granitemoe": LOCAL,  # experts in one tensor, under another name
    "gpt_oss": LOCAL,  # transposed experts with biases
    "t5": {**T5, "tie_word_embeddings": False},  # looks at a layer's weight
    "umt5": T5,  # scales what a tied head sees
    "marian": MARIAN,  # adds to a tied head's logits
    "llama4_text": {**LOCAL, "num_experts_per_tok": 1, "intermediate_size_mlp": 96},
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
GROUP = 16


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SIZES, **ARCHITECTURES[name]})
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return kind.from_config(config).eval()


def compute(model: Any) -> Tensor:
    with torch.inference_mode():
        more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
        logits: Tensor = model(IDS, **more).logits
    return logits


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_plain_models_are_transformers(name: str, tmp_path: Path) -> None:
    made = make_model(name)
    made.save_pretrained(tmp_path)
    theirs, ours = type(made).from_pretrained(tmp_path).eval(), qload.load(tmp_path)
    assert torch.allclose(compute(ours), compute(theirs), atol=1e-5)
    assert qload.validate(tmp_path).findings == ()
    assert all(type(module) is not nn.Linear for module in ours.modules())
    assert isinstance(ours.get_output_embeddings(), ParallelLMHead)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_model_keeps_in_float32_stays_so(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    made = make_model(name)
    made.save_pretrained(tmp_path)
    theirs = type(made).from_pretrained(tmp_path, dtype=dtype)
    found = {key: tensor.dtype for key, tensor in qload.load(tmp_path, dtype=dtype).named_parameters()}
    expected = {key: tensor.dtype for key, tensor in theirs.named_parameters()}
    assert {key: found[key] for key in found.keys() & expected.keys()} == {
        key: expected[key] for key in found.keys() & expected.keys()
    }


def quantize(model: Any, path: Path) -> Tensor:
    """Save the model with its linear layers packed to 4 bits by the package; the logits of what that means."""
    weights = QuantizationArgs(num_bits=4, strategy="group", group_size=GROUP, symmetric=False)
    config = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        ignore=["lm_head", "re:.*router.*", "re:.*gate$", "re:.*(dt|x)_proj$"],
        quantization_status="frozen",
    )
    apply_quantization_config(model, config, show_progress=False)
    layers = [module for module in model.modules() if hasattr(module, "quantization_scheme")]
    for layer in layers:
        grouped = layer.weight.data.unflatten(1, (-1, GROUP))
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), weights)
        layer.weight_scale.data, layer.weight_zero_point.data = scale, zero
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(path)
    compressor.update_config(path)
    compressor.decompress_model(model)
    for layer in layers:
        layer.quantization_enabled = False
    return compute(model)


def test_quantized_models_are_the_packages(name: str, tmp_path: Path) -> None:
    expected = quantize(make_model(name), tmp_path)
    assert qload.validate(tmp_path).findings == ()
    model = qload.load(tmp_path)
    assert torch.allclose(compute(model), expected, atol=1e-5)
    labels = {label: count for label, count in qload.report(model).layers.items() if "int4 group 16" in label}
    assert labels or name in ("gpt2",), "the package quantizes no convolution"


@pytest.mark.parametrize("stored", [(), ("decoder.weight",), ("decoder.bias",)], ids=lambda names: names or "none")
def test_a_head_whose_bias_is_tied_too(stored: tuple[str, ...], tmp_path: Path) -> None:
    """BERT's: older checkpoints store the tied weight, and some tools every name."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SIZES)).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in stored:
        tensors[f"cls.predictions.{name}"] = model.get_parameter(f"cls.predictions.{name}").detach().clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    ours = qload.load(tmp_path)
    assert torch.allclose(compute(ours), compute(model), atol=1e-5)
    assert isinstance(ours.get_output_embeddings(), ParallelLMHead)


def test_experts_are_stacked_where_they_are_stored_one_by_one(tmp_path: Path) -> None:
    for name, stacked in (("mixtral", True), ("qwen3_moe", True), ("granitemoe", False), ("gpt_oss", False)):
        make_model(name).save_pretrained(tmp_path / name)
        model = qload.load(tmp_path / name)
        assert any(isinstance(module, Experts) for module in model.modules()) == stacked


def test_rows_of_a_tensor_that_is_fused_on_disk(tmp_path: Path) -> None:
    """What one stored module fills is read in two halves, and nothing of it is left over."""
    make_model("hrm_text").save_pretrained(tmp_path)
    stored = qload.validate(tmp_path)
    model = qload.load(tmp_path)
    report = qload.report(model)
    assert report.bytes_read == stored.nbytes
    sources = {source.prefix for module in model.modules() for source in getattr(module, "sources", ())}
    assert any("gate_up_proj" in prefix for prefix in sources)
