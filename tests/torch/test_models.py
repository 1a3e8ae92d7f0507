"""Real checkpoints, made by other people's tools, against the numbers of those tools."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import ROUNDED, Comparison, compare, compute, load
from edits import edit_config, edit_tensors, split_files
from safetensors.torch import load_file
from samples import (
    BROKEN,
    DATA,
    DEMO,
    flaws,
    is_sound,
    read_config,
    read_reference,
    relative_error,
    samples,
    supported,
)
from torch import Tensor, nn

import qload
from qload import Registry
from qload.calls import Origin
from qload.checkpoint import Checkpoint, Storage, open_folder
from qload.errors import CheckpointError, ModelError
from qload.torch import Experts, Layer, ParallelLMHead, VocabParallelEmbedding

names = pytest.mark.parametrize("path", supported(), ids=lambda path: path.name)


@pytest.fixture(scope="module")
def compared() -> Callable[[Path], Comparison]:
    return cache(compare)


@names
def test_weights_are_the_producers(path: Path, compared: Callable[[Path], Comparison]) -> None:
    """Bit for bit, in the dtype in which the producer's decoder computed."""
    assert compared(path).weight_error <= (2**-7 if path.name in ROUNDED else 0)


@names
def test_logits_are_the_dequantized_models(path: Path, compared: Callable[[Path], Comparison]) -> None:
    found = compared(path)
    assert found.logits_error <= found.tolerance


RUNTIMES = [path for path in supported() if path.name.startswith(("ct-", "autoround-mxfp4"))]


@pytest.mark.parametrize("path", RUNTIMES, ids=lambda path: path.name)
def test_activations_and_caches_are_rounded_as_the_producers_runtime_does(path: Path) -> None:
    """In its own dtype; where activations are quantized, the logits of the weights alone differ by 5e-3 or more."""
    stored = load_file(path / "reference.safetensors")
    if "logits_runtime" not in stored:
        pytest.skip("the producer cannot run it")
    model = qload.load(path, dtype=torch.bfloat16, kernels=())
    assert relative_error(compute(model, stored["input_ids"]), stored["logits_runtime"]) <= 1e-3


@pytest.mark.parametrize("path", [path for path in samples() if not is_sound(path)], ids=lambda path: path.name)
def test_broken_checkpoints_are_refused_with_a_reason(path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert {finding.code for finding in caught.value.findings} <= BROKEN[path.name]
    assert len(caught.value.findings) <= 7


@names
def test_weights_stay_packed(path: Path) -> None:
    """Memory is the packed bytes, before and after computing; nothing that is stored is cast."""
    model = load(path)
    report = qload.report(model)
    before = tensor_bytes(model)
    compute(model, torch.tensor([[1, 2, 3]]))
    assert tensor_bytes(model) == before
    assert 0.98 * report.bytes_in_memory <= before <= 1.02 * report.bytes_in_memory
    stored = qload.validate(path)
    floats = report.bytes_in_memory - stored.nbytes
    assert floats <= sum(p.nbytes for p in model.parameters() if p.dtype == torch.float32)


def tensor_bytes(model: nn.Module) -> int:
    tensors = {tensor.data_ptr(): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.nbytes for tensor in tensors.values())


@names
def test_every_layer_is_ours(path: Path) -> None:
    model = load(path)
    for name, module in model.named_modules():
        assert not isinstance(module, nn.Linear), name
        assert type(module) is not nn.Embedding, name
    assert isinstance(model.get_input_embeddings(), VocabParallelEmbedding)
    assert isinstance(model.get_output_embeddings(), ParallelLMHead)
    assert all(not tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


@names
def test_the_report_counts_what_was_done(path: Path) -> None:
    progress: list[qload.Progress] = []
    model = load(path, progress=progress.append)
    report = qload.report(model)
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    assert sum(report.layers.values()) == len(layers) - (1 if tied(model) else 0)
    assert report.tensors == qload.validate(path).tensors
    parts = ["headers", "method", "model", "names", "layers", "plan", "copy", "process", "finish"]
    assert list(report.seconds) == parts
    assert progress[-1].done == progress[-1].total == report.bytes_needed <= report.bytes_read
    assert [step.done for step in progress] == sorted(step.done for step in progress)
    assert {finding.code for finding in report.findings} <= flaws(path)


def tied(model: Any) -> bool:
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    return any(one is other for one in table.parameters() for other in head.parameters())


@names
def test_it_generates(path: Path) -> None:
    model: Any = qload.load(path)
    ids = torch.tensor([[5, 6, 7, 8]])
    options: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert output.shape == (1, 12)
    with torch.inference_mode():
        logits = model(output[:, :-1]).logits[0, 3:]
    best = logits.max(-1).values
    chosen = logits.gather(-1, output[0, 4:, None])[:, 0]
    # With a cache the sums are of other shapes, so that a tie in low precision may fall the other way.
    assert torch.all(best - chosen <= 0.02 * logits.abs().amax())


def test_tied_models_share_one_table() -> None:
    model = load(DATA / "ct-qwen2-tied-w8a8")
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert table.weight is head.weight
    model.tie_weights()
    assert model.get_output_embeddings() is head


def test_a_quantized_table_is_shared_too(broken: Callable[[str], Path]) -> None:
    folder = broken("ct-w4a16-lmhead-embed")
    remove_head(folder)
    edit_config(folder, lambda config: config.update(tie_word_embeddings=True))
    model = load(folder)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert table.weight_packed is head.weight_packed
    assert torch.equal(qload.dequantize(head), qload.dequantize(table))
    logits = compute(model, torch.tensor([[1, 2]]))
    hidden = model.model(torch.tensor([[1, 2]])).last_hidden_state
    assert torch.allclose(logits, hidden @ qload.dequantize(table).float().T, atol=1e-4)


def remove_head(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("lm_head.")]:
            del tensors[name]

    edit_tensors(folder, change)


def test_a_head_that_is_stored_though_tied_is_used(broken: Callable[[str], Path]) -> None:
    folder = broken("ct-w4a16-lmhead-embed")
    edit_config(folder, lambda config: config.update(tie_word_embeddings=True))
    model = load(folder)
    assert [finding.code for finding in qload.report(model).findings] == ["QL206"]
    expected = compute(load(DATA / "ct-w4a16-lmhead-embed"), torch.tensor([[1, 2]]))
    assert torch.equal(compute(model, torch.tensor([[1, 2]])), expected)


def test_computing_keeps_no_dense_weight_for_a_gradient() -> None:
    """In torch's default mode, in which a parameter that asked for a gradient would keep every layer's."""
    logits = load(DEMO)(torch.tensor([[1, 2]])).logits
    assert not logits.requires_grad


def test_a_loaded_model_is_not_saved_as_if_it_were_plain(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="keep the folder that it came from"):
        load(DEMO).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_experts_stay_packed_and_stacked() -> None:
    model = load(DATA / "gptq-qwen3moe-4bit-g128")
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    config = model.config
    assert len(experts) == config.num_hidden_layers
    stack = experts[0].gate_up_proj
    assert stack.qweight.shape == (config.num_experts, 256 // 8, 2 * config.moe_intermediate_size)
    assert qload.dequantize(stack).shape == (config.num_experts, 2 * config.moe_intermediate_size, 256)


def test_activations_are_quantized_unless_switched_off() -> None:
    path = DATA / "ct-qwen2-tied-w8a8"
    ids = read_reference(path).input_ids
    plain, quantized = compute(load(path), ids), compute(load(path, quantize_activations=True), ids)
    assert 1e-3 < relative_error(quantized, plain) < 0.2


@pytest.mark.parametrize("name", ["ct-fp8-static", "ct-fp8-block", "ct-qwen2-tied-w8a8"])
def test_quantized_activations_are_the_runtimes(name: str) -> None:
    """In bfloat16, as the producer ran it: its own runtime is nearer to us than to the weights alone."""
    reference = load_file(DATA / name / "reference.safetensors")
    logits = compute(qload.load(DATA / name, dtype=torch.bfloat16, kernels=()), reference["input_ids"]).float()
    near = relative_error(logits, reference["logits_runtime"])
    far = relative_error(reference["logits_dequant_fp32"], reference["logits_runtime"])
    assert near < 0.02
    assert near < far


def test_scales_keep_their_dtype_when_a_layer_is_cast() -> None:
    layer = load(DEMO).model.layers[0].mlp.down_proj
    layer.half()
    assert layer.weight_scale.dtype == torch.bfloat16
    assert layer.weight_packed.dtype == torch.int32


def test_transformers_cannot_cast_the_model() -> None:
    with pytest.raises(ValueError, match="not supported for quantized model"):
        load(DEMO).half()


@pytest.mark.parametrize("dtype", [torch.float16, "bfloat16", "float32"])
def test_it_computes_in_the_dtype_that_is_asked_for(dtype: torch.dtype | str) -> None:
    model = load(DEMO, dtype=dtype)
    assert str(compute(model, torch.tensor([[1]])).dtype).endswith(str(dtype).removeprefix("torch."))
    assert model.model.layers[0].mlp.down_proj.weight_scale.dtype == torch.bfloat16


def test_several_files_load_as_one(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    split_files(folder, 3)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(compute(load(folder), ids), compute(load(DEMO), ids))


def test_the_config_is_the_one_that_the_checkpoint_was_opened_with(broken: Callable[[str], Path]) -> None:
    """Whoever opens a checkpoint, the folder's own file is not looked at again."""
    folder = broken(DEMO.name)

    class Opener:
        @staticmethod
        def qload_open_checkpoint(storage: Storage) -> Checkpoint:
            return replace(open_folder(storage), config=read_config(DEMO), findings=())

    (folder / "config.json").unlink()
    found = Registry.discover()
    origin = Origin("opener", "opener", "strangers", "1", lambda: Opener)
    registry = Registry([each for name in found.names for each in found.origins(name)], plugins=[origin])
    model = qload.load(folder, registry=registry)
    assert model.config.name_or_path == str(folder)
    assert not hasattr(model.config, "quantization_config")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(compute(model, ids), compute(qload.load(DEMO), ids))


def test_an_architecture_that_is_not_there(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    edit_config(folder, lambda config: config.update(model_type="nothing", architectures=["Nothing"]))
    with pytest.raises(ModelError, match="never run"):
        load(folder)


def test_code_that_comes_with_a_checkpoint_is_never_run(broken: Callable[[str], Path], tmp_path: Path) -> None:
    folder = broken(DEMO.name)
    trap = tmp_path / "ran"
    (folder / "modeling_trap.py").write_text(f"open({str(trap)!r}, 'w')\nclass Trap: pass\n")
    hooks = {"AutoConfig": "modeling_trap.Trap", "AutoModelForCausalLM": "modeling_trap.Trap"}
    edit_config(folder, lambda config: config.update(auto_map=hooks))
    load(folder)
    edit_config(folder, lambda config: config.update(model_type="trap"))
    with pytest.raises(ModelError):
        load(folder)
    assert not trap.exists()


def test_a_model_that_we_did_not_make_has_no_report() -> None:
    with pytest.raises(ModelError, match=r"qload\.load did not make"):
        qload.report(nn.Linear(2, 2))


def test_configs_of_the_samples_are_read_only() -> None:
    before = read_config(DEMO)
    load(DEMO)
    assert read_config(DEMO) == before
