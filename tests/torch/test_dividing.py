"""Transformers models divided over real ranks: what one process computes, of each checkpoint, with its own bytes."""

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, make_model
from edits import edit_tensors
from jobs.transformers_models import Computed, compute, compute_after_death, compute_architecture, load_unlike, sample
from samples import DATA, DEMO, is_sound, is_swept, read_reference, relative_error, samples
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from worlds import World

import qload
from qload.errors import CheckpointError, ParallelError, ShardError
from qload.torch.parallel import Group

Worlds = Callable[[int], World]
SOUND = [path for path in samples() if is_sound(path)]
MIXTURE = DATA / "ct-qwen3moe-w4a16"
CONVERTED = "inkling2_text"
"""Its stacks of experts are rearranged by transformers, which only the model tells."""
WHOLE = {"hrm_text", "llama4_text", "inkling2_text", "hy_v4"}
"""Architectures of which much stays whole: stacks without a name of their own, and weights that are rearranged."""
TOLERANCE = 1e-5
"""Of sums of as many numbers in another order."""
ROUNDED = 2e-2
"""Where activations are rounded, another order puts some on another side of an edge: the greatest lies on one."""


@cache
def compute_alone(path: Path, rounded: bool = False) -> Computed:
    return compute(Group(), path, read_ids(path), rounded=rounded)


def read_ids(path: Path) -> Tensor:
    has_reference = (path / "reference.safetensors").exists()
    return read_reference(path).input_ids if has_reference else torch.arange(5, 21)[None]


@pytest.mark.parametrize(
    ("path", "size"),
    [*((path, 2) for path in SOUND), *((path, 4) for path in filter(is_swept, SOUND))],
    ids=lambda value: getattr(value, "name", value),
)
def test_ranks_compute_what_one_process_does(worlds: Worlds, path: Path, size: int) -> None:
    (planned,) = qload.plan_ranks(path, [size]).sizes
    if not planned.fits:
        with pytest.raises(ShardError) as caught:
            worlds(size).run(compute, path, read_ids(path))
        assert size not in caught.value.sizes
        return
    ranks, alone = worlds(size).run(compute, path, read_ids(path)), compute_alone(path)
    for rank in ranks:
        assert relative_error(rank.logits, alone.logits) < TOLERANCE
        assert torch.equal(rank.logits, ranks[0].logits)
        assert torch.equal(rank.tokens, alone.tokens)
    reports = [rank.report for rank in ranks]
    # What no checkpoint stores, as rotary frequencies, every rank has whole.
    computed = max(0, alone.report.bytes_in_memory - qload.plan_ranks(path, [1]).sizes[0].ranks[0].held)
    for report, share in zip(reports, planned.ranks, strict=True):
        assert report.bytes_in_memory <= share.held + computed
    assert [report.bytes_needed for report in reports] == [share.read for share in planned.ranks]
    assert sum(report.bytes_needed for report in reports) == alone.report.bytes_needed + planned.replicated


def rounds(path: Path) -> bool:
    """Whether a checkpoint's activations are quantized."""
    return not torch.equal(compute_alone(path).logits, compute_alone(path, rounded=True).logits)


@pytest.mark.parametrize("path", [*filter(is_swept, SOUND)], ids=lambda path: path.name)
def test_ranks_round_activations_as_one_process_does(worlds: Worlds, path: Path) -> None:
    """To the bit, tests of single layers hold."""
    if not rounds(path):
        pytest.skip("its activations are not quantized")
    for rank in worlds(2).run(compute, path, read_ids(path), False, True):
        assert relative_error(rank.logits, compute_alone(path, rounded=True).logits) < ROUNDED


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_can_be_divided(name: str, tmp_path: Path, worlds: Worlds) -> None:
    """Whatever its layers are called, and whether transformers has a plan for it or none."""
    make_model(name).save_pretrained(tmp_path)
    (expected, whole), ranks = compute_architecture(Group(), tmp_path), worlds(2).run(compute_architecture, tmp_path)
    (planned,) = qload.plan_ranks(tmp_path, [2]).sizes
    for logits, _ in ranks:
        assert torch.allclose(logits, expected, atol=1e-4)
    assert max(needed for _, needed in ranks) < whole * 0.7 or name in WHOLE
    if name != CONVERTED:
        assert [needed for _, needed in ranks] == [share.read for share in planned.ranks]


@pytest.mark.parametrize("quantization", [None, "hqq-int3"])
def test_features_that_ranks_cannot_share_evenly_are_gathered(
    quantization: str | None, tmp_path: Path, worlds: Worlds
) -> None:
    """The projections around them are divided the other way, or whole, as planned: none hands on an uneven share."""
    sizes: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 64}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(intermediate_size=90, **sizes)).save_pretrained(tmp_path)
    assert qload.plan_ranks(tmp_path, [4]).fits
    expected, _ = compute_architecture(Group(), tmp_path, quantization)
    for logits, _ in worlds(4).run(compute_architecture, tmp_path, quantization):
        assert torch.allclose(logits, expected, atol=1e-5)


def test_a_mixture_can_be_divided_by_experts(worlds: Worlds) -> None:
    (planned,) = qload.plan_ranks(MIXTURE, [2], expert_parallel=True).sizes
    ranks = worlds(2).run(compute, MIXTURE, read_ids(MIXTURE), True)
    for rank, share in zip(ranks, planned.ranks, strict=True):
        assert relative_error(rank.logits, compute_alone(MIXTURE).logits) < TOLERANCE
        assert rank.report.bytes_needed == share.read


def test_ranks_sample_the_same_tokens_as_one_process(worlds: Worlds) -> None:
    """Each rank has a random state of its own before: the first one's counts."""
    (alone,) = [sample(Group(), DEMO, 7)]
    assert all(torch.equal(tokens, alone) for tokens in worlds(2).run(sample, DEMO, 7))
    assert not torch.equal(sample(Group(), DEMO, 8), alone)


def test_ranks_that_generate_from_different_inputs_are_told(worlds: Worlds) -> None:
    with pytest.raises(ParallelError, match="different inputs"):
        worlds(2).run(sample, DEMO, 7, True)


@pytest.mark.parametrize("size", [3, 8])
def test_what_does_not_fit_is_said_with_the_sizes_that_do(size: int, worlds: Worlds) -> None:
    with pytest.raises(
        ShardError, match=r"4 heads .* numbers of ranks|tensor-parallel sizes that fit: 1, 2, 4"
    ) as caught:
        worlds(size).run(compute, DEMO, read_ids(DEMO))
    assert caught.value.sizes == (1, 2, 4)


def test_a_broken_file_on_one_rank_is_an_error_on_all(broken: Callable[[str], Path], worlds: Worlds) -> None:
    path = broken(DEMO.name)
    name = "model.layers.1.mlp.up_proj.weight_scale"
    edit_tensors(path, lambda tensors: tensors.update({name: tensors[name] * float("nan")}))
    (own,), (others,) = worlds(2).run(load_unlike, [path, DEMO])
    assert isinstance(own, CheckpointError)
    assert isinstance(others, ParallelError)
    assert list(others.failures) == [0]
    assert "QL501" in others.failures[0]


def test_a_killed_rank_ends_the_others_within_seconds() -> None:
    world = World(2)
    try:
        with pytest.raises(ChildProcessError, match="rank 1 is gone") as caught:
            world.run(compute_after_death, DEMO, read_ids(DEMO), int(signal.SIGKILL))
    finally:
        world.close()
    assert not hasattr(caught.value, "__notes__")
