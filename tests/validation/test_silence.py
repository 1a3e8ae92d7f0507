"""Checkpoints as the hub has them, in which nothing is wrong: no rule may speak of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from headers import (
    HIDDEN,
    INNER,
    VOCABULARY,
    Shapes,
    attention,
    awq,
    ct_section,
    fp8_block,
    fp8_section,
    fp8_tensor,
    mixture,
    mlp,
    model_config,
    mxfp4_stack,
    norms,
    outer,
    packed,
    plain,
    write_headers,
)

import qload

Made = tuple[dict[str, Any], Shapes]


def latent(layer: str, make: Any) -> Shapes:
    """DeepSeek's attention."""
    tensors: Shapes = {}
    sizes = {"q_a_proj": (128, HIDDEN), "q_b_proj": (384, 128), "kv_b_proj": (512, 128), "o_proj": (HIDDEN, 256)}
    for leaf, shape in {**sizes, "kv_a_proj_with_mqa": (192, HIDDEN)}.items():
        tensors |= make(f"{layer}.self_attn.{leaf}", *shape)
    return tensors | plain(f"{layer}.self_attn.q_a_layernorm", 128) | plain(f"{layer}.self_attn.kv_a_layernorm", 128)


def deepseek(section: dict[str, Any], make: Any) -> Made:
    """A dense layer, mixtures, and after the counted layers one that predicts a token more."""
    tensors = outer()
    for layer in (f"model.layers.{number}" for number in range(4)):
        tensors |= norms(layer) | latent(layer, make)
        if layer.endswith(".0"):
            tensors |= mlp(f"{layer}.mlp", make)
            continue
        tensors |= mixture(f"{layer}.mlp", make) | mlp(f"{layer}.mlp.shared_experts", make)
        tensors |= plain(f"{layer}.mlp.gate", 4, HIDDEN) | {f"{layer}.mlp.gate.e_score_correction_bias": ("F32", (4,))}
    last = "model.layers.3"
    tensors |= plain(f"{last}.enorm", HIDDEN) | plain(f"{last}.hnorm", HIDDEN)
    tensors |= plain(f"{last}.eh_proj", HIDDEN, 2 * HIDDEN) | plain(f"{last}.shared_head.norm", HIDDEN)
    tensors |= plain(f"{last}.shared_head.head", VOCABULARY, HIDDEN) | plain(f"{last}.embed_tokens", VOCABULARY, HIDDEN)
    more = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1}
    return model_config("deepseek_v3", 3, **more, tie_word_embeddings=False, quantization_config=section), tensors


def deepseek_fp8() -> Made:
    section = fp8_section()
    del section["modules_to_not_convert"]
    return deepseek(section, fp8_block)


def deepseek_packed() -> Made:
    gates = [f"model.layers.{number}.mlp.gate" for number in (1, 2)]
    return deepseek(ct_section("lm_head", *gates, "model.layers.3.eh_proj", "model.layers.3.shared_head.head"), packed)


def tower(name: str) -> Shapes:
    tensors = plain(f"{name}.patch_embed.proj", 64, 3, 2, 14, 14)
    for block in (f"{name}.blocks.{number}" for number in range(12)):
        tensors |= plain(f"{block}.attn.qkv", 192, 64, bias=True) | plain(f"{block}.attn.proj", 64, 64, bias=True)
        tensors |= plain(f"{block}.mlp.fc1", 128, 64, bias=True) | plain(f"{block}.mlp.fc2", 64, 128, bias=True)
        tensors |= plain(f"{block}.norm1", 64, bias=True)
    return tensors | plain(f"{name}.merger.mlp.0", 256, 256, bias=True) | plain(f"{name}.merger.mlp.2", HIDDEN, 256)


def qwen2_vl(section: dict[str, Any], make: Any) -> Made:
    tensors = outer() | tower("visual")
    for layer in (f"model.layers.{number}" for number in range(3)):
        tensors |= norms(layer) | attention(layer, make, bias=True) | mlp(f"{layer}.mlp", make)
    vision = {"depth": 12, "embed_dim": 64, "hidden_size": 64}
    return model_config("qwen2_vl", 3, vision_config=vision, quantization_config=section), tensors


def qwen2_vl_awq() -> Made:
    section = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
    return qwen2_vl({**section, "modules_to_not_convert": ["visual"]}, awq)


def qwen2_vl_of_a_recipe() -> Made:
    """Entries for several ways to name the tower, of which some match nothing."""
    return qwen2_vl(ct_section("re:.*lm_head", "re:visual.*", "re:model.visual.*", r"re:.*mlp\.gate$"), packed)


def qwen2_vl_by_the_models_names() -> Made:
    """The names that newer versions of the model give its modules, and older tensors."""
    blocks = [f"model.visual.blocks.{number}.attn.qkv" for number in range(12)]
    return qwen2_vl(ct_section("lm_head", *blocks, "model.visual.merger.mlp.0"), packed)


def gemma3() -> Made:
    """Several modes, a head that is tied and not stored, and counts of layers of its own in each part."""
    text = "language_model.model"
    tensors = outer(text, head=False)
    for layer in (f"{text}.layers.{number}" for number in range(4)):
        tensors |= norms(layer) | attention(layer, packed) | mlp(f"{layer}.mlp", packed)
        tensors |= plain(f"{layer}.self_attn.q_norm", 64) | plain(f"{layer}.self_attn.k_norm", 64)
    for layer in (f"vision_tower.vision_model.encoder.layers.{number}" for number in range(11)):
        for leaf in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= plain(f"{layer}.self_attn.{leaf}", 64, 64, bias=True)
        tensors |= plain(f"{layer}.mlp.fc1", 128, 64, bias=True) | plain(f"{layer}.mlp.fc2", 64, 128, bias=True)
    tensors["multi_modal_projector.mm_input_projection_weight"] = ("BF16", (64, HIDDEN))
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": model_config("gemma3_text", 4, sliding_window_pattern=6),
        "vision_config": {"num_hidden_layers": 11, "hidden_size": 64, "num_attention_heads": 2},
        "tie_word_embeddings": True,
    }
    ignored = ("lm_head", "re:vision_tower.*", "re:multi_modal_projector.*")
    return {**whole, "quantization_config": ct_section(*ignored)}, tensors


def gemma3n() -> Made:
    """Whose last layers have the keys and values of others; those projections are not stored."""
    tensors = outer("model.language_model", head=False)
    for number in range(6):
        layer = f"model.language_model.layers.{number}"
        tensors |= norms(layer) | mlp(f"{layer}.mlp", plain) | plain(f"{layer}.self_attn.q_proj", HIDDEN, HIDDEN)
        tensors |= plain(f"{layer}.self_attn.o_proj", HIDDEN, HIDDEN)
        if number < 4:
            for leaf in ("k_proj", "v_proj"):
                tensors |= plain(f"{layer}.self_attn.{leaf}", 128, HIDDEN)
    return {"text_config": model_config("gemma3n_text", 6, num_kv_shared_layers=2), "model_type": "gemma3n"}, tensors


def qwen3_moe() -> Made:
    """A producer's list of everything that is not quantized, norms included, by whole names."""
    tensors, ignored = outer(), ["lm_head"]
    for layer in (f"model.layers.{number}" for number in range(12)):
        tensors |= norms(layer) | attention(layer, fp8_block) | mixture(f"{layer}.mlp", fp8_block)
        tensors |= plain(f"{layer}.mlp.gate", 4, HIDDEN)
        ignored += [f"{layer}.mlp.gate", f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
    config = model_config("qwen3_moe", 12, num_experts=4, tie_word_embeddings=False)
    return {**config, "quantization_config": fp8_section(*ignored)}, tensors


def phi3() -> Made:
    """Fused on disk, with a scale for each channel or group."""
    tensors = outer()
    for layer in (f"model.layers.{number}" for number in range(3)):
        tensors |= norms(layer) | packed(f"{layer}.self_attn.qkv_proj", 512, HIDDEN)
        tensors |= packed(f"{layer}.self_attn.o_proj", HIDDEN, HIDDEN)
        tensors |= packed(f"{layer}.mlp.gate_up_proj", 2 * INNER, HIDDEN) | packed(
            f"{layer}.mlp.down_proj", HIDDEN, INNER
        )
    return model_config("phi3", 3, quantization_config=ct_section("lm_head")), tensors


def mixtral() -> Made:
    """Ignored by the names that newer versions of the model give its modules."""
    tensors = outer()
    for layer in (f"model.layers.{number}" for number in range(3)):
        block = f"{layer}.block_sparse_moe"
        tensors |= norms(layer) | attention(layer, packed) | plain(f"{block}.gate", 4, HIDDEN)
        tensors |= mixture(block, packed, leaves=("w1", "w3", "w2"))
    gates = [f"model.layers.{number}.mlp.gate" for number in range(3)]
    config = model_config("mixtral", 3, num_local_experts=4)
    return {**config, "quantization_config": ct_section("lm_head", *gates)}, tensors


def gpt_oss() -> Made:
    tensors = outer()
    for layer in (f"model.layers.{number}" for number in range(3)):
        tensors |= norms(layer) | attention(layer, plain, bias=True) | {f"{layer}.self_attn.sinks": ("BF16", (4,))}
        tensors |= {f"{layer}.self_attn.o_proj.bias": ("BF16", (HIDDEN,))}
        tensors |= plain(f"{layer}.mlp.router", 4, HIDDEN, bias=True)
        tensors |= mxfp4_stack(f"{layer}.mlp.experts.gate_up_proj", 4, 2 * INNER, HIDDEN)
        tensors |= mxfp4_stack(f"{layer}.mlp.experts.down_proj", 4, HIDDEN, INNER)
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    section = {"quant_method": "mxfp4", "modules_to_not_convert": left}
    return model_config("gpt_oss", 3, num_local_experts=4, quantization_config=section), tensors


def tied() -> Made:
    tensors = outer(head=False)
    for layer in (f"model.layers.{number}" for number in range(3)):
        tensors |= norms(layer) | attention(layer, packed, bias=True) | mlp(f"{layer}.mlp", packed)
    return model_config("qwen2", 3, tie_word_embeddings=True, quantization_config=ct_section("lm_head")), tensors


def jamba() -> Made:
    """Attention in one layer, a state space in others, and mixtures in every second one."""
    tensors = outer()
    for number in range(8):
        layer = f"model.layers.{number}"
        tensors |= norms(layer)
        if number % 4 == 3:
            tensors |= attention(layer, plain)
        else:
            tensors |= plain(f"{layer}.mamba.in_proj", 2 * INNER, HIDDEN) | plain(
                f"{layer}.mamba.out_proj", HIDDEN, INNER
            )
            tensors |= plain(f"{layer}.mamba.dt_proj", INNER, 16, bias=True) | {
                f"{layer}.mamba.A_log": ("BF16", (INNER, 16))
            }
        feed = f"{layer}.feed_forward"
        if number % 2:
            tensors |= mixture(feed, plain) | plain(f"{feed}.router", 4, HIDDEN)
        else:
            tensors |= mlp(feed, plain)
    return model_config("jamba", 8, num_experts=4, attn_layer_period=4), tensors


def first_layers_left() -> Made:
    """Whole layers in more bits than the others, by name."""
    tensors = outer()
    for number in range(12):
        layer = f"model.layers.{number}"
        make = plain if number in (0, 11) else fp8_block
        tensors |= norms(layer) | attention(layer, make) | mlp(f"{layer}.mlp", make)
    left = [f"model.layers.{number}.{block}" for number in (0, 11) for block in ("self_attn", "mlp")]
    return model_config("llama", 12, quantization_config=fp8_section("lm_head", *left)), tensors


def scales_by_tensor() -> Made:
    """Keys and values with scales in all layers, beside scales of weights by tensor."""
    tensors = outer()
    for layer in (f"model.layers.{number}" for number in range(3)):
        tensors |= norms(layer) | attention(layer, fp8_tensor) | mlp(f"{layer}.mlp", fp8_tensor)
        tensors |= {f"{layer}.self_attn.{leaf}_scale": ("F32", ()) for leaf in "kv"}
    section = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    return model_config("llama", 3, quantization_config=section), tensors


def outputs_of_keys_and_values() -> Made:
    """Scales of outputs beside the keys' and values' projections alone, as some tools quantize a cache."""
    tensors = outer()
    for layer in (f"model.layers.{number}" for number in range(3)):
        tensors |= norms(layer) | attention(layer, fp8_tensor) | mlp(f"{layer}.mlp", fp8_tensor)
        tensors |= {f"{layer}.self_attn.{leaf}_proj.output_scale": ("F32", ()) for leaf in "kv"}
    spec = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False, "symmetric": True}
    cached = {"weight": spec, "output_tensors": spec}
    section = {
        "quant_method": "quark",
        "global_quant_config": {"weight": spec},
        "layer_quant_config": {"*k_proj": cached, "*v_proj": cached},
        "exclude": ["lm_head"],
    }
    return model_config("llama", 3, quantization_config=section), tensors


def llama4() -> Made:
    """Stacks of experts that lie as [in, out], each with one scale for all of its experts."""
    tensors = outer()
    for layer in (f"model.layers.{number}" for number in range(3)):
        tensors |= norms(layer) | attention(layer, plain) | plain(f"{layer}.feed_forward.router", 4, HIDDEN)
        experts = f"{layer}.feed_forward.experts"
        for leaf, sizes in {"gate_up_proj": (HIDDEN, 2 * INNER), "down_proj": (INNER, HIDDEN)}.items():
            tensors[f"{experts}.{leaf}"] = ("F8_E4M3", (4, *sizes))
            tensors |= {f"{experts}.{leaf}_{end}_scale": ("F32", ()) for end in ("weight", "input")}
    left = ["lm_head", "model.layers.*.self_attn*", "model.layers.*.feed_forward.router"]
    section = {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": left}
    return model_config("llama4_text", 3, num_local_experts=4, quantization_config=section), tensors


def speech() -> Made:
    """An encoder and a decoder, each with a count of its own; the config's usual word counts the encoder's."""
    tensors = outer("model.decoder", head=False)
    for number in range(2):
        layer = f"model.decoder.layers.{number}"
        tensors |= norms(layer) | attention(layer, plain) | plain(f"{layer}.fc1", INNER, HIDDEN, bias=True)
    for number in range(4):
        tensors |= attention(f"model.encoder.layers.{number}", plain)
    return model_config("whisper", 4, encoder_layers=4, decoder_layers=2), tensors


MADE: tuple[Callable[[], Made], ...] = (
    deepseek_fp8,
    deepseek_packed,
    qwen2_vl_awq,
    qwen2_vl_of_a_recipe,
    qwen2_vl_by_the_models_names,
    gemma3,
    gemma3n,
    qwen3_moe,
    phi3,
    mixtral,
    gpt_oss,
    tied,
    jamba,
    first_layers_left,
    scales_by_tensor,
    outputs_of_keys_and_values,
    speech,
)


@pytest.mark.parametrize("make", MADE)
def test_what_the_hub_has_is_no_fault(make: Callable[[], Made], tmp_path: Path) -> None:
    config, tensors = make()
    assert qload.validate(write_headers(tmp_path / "made", config, tensors)).findings == ()


def test_one_scale_for_a_stack_of_experts_is_no_wrong_shape(tmp_path: Path) -> None:
    """That its parts share it is a warning, as for every layer that was fused before it was quantized."""
    config, tensors = llama4()
    found = qload.validate(write_headers(tmp_path / "made", config, tensors), tp=(2,)).findings
    assert {finding.code for finding in found} == {"QL306"}
    scale = "model.layers.0.feed_forward.experts.down_proj_weight_scale"
    tensors[scale] = ("F32", (3,))
    assert [each.where for each in qload.validate(write_headers(tmp_path / "made", config, tensors)).errors] == [scale]
