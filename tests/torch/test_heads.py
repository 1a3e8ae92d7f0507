"""Models of many numbers of heads, on odd numbers of ranks and on meshes of several axes, against one process."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jobs.transformers_models import compute_eagerly, compute_in_float64, compute_on_axes, compute_saved
from samples import DEMO, relative_error
from transformers import LlamaConfig, LlamaForCausalLM
from worlds import World

from qload.torch.parallel import Group

Worlds = Callable[[int], World]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [3, 3, 64, 0, 1, 2]])


def save(folder: Path, heads: int, kv: int) -> Path:
    """A tiny model of 65 tokens, whose intermediate size two, three and four ranks divide."""
    torch.manual_seed(heads + kv)
    config = LlamaConfig(
        vocab_size=65,
        hidden_size=48,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=4,
        attention_bias=True,
        mlp_bias=True,
    )
    model = LlamaForCausalLM(config)
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(tensor)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("heads", "kv", "size"),
    [(8, 1, 2), (8, 2, 2), (8, 8, 2), (8, 1, 4), (8, 2, 4), (8, 8, 4), (6, 3, 3), (6, 1, 3), (6, 6, 3)],
)
def test_ranks_share_heads_or_have_the_same(worlds: Worlds, tmp_path: Path, heads: int, kv: int, size: int) -> None:
    path = save(tmp_path, heads, kv)
    alone = compute_in_float64(Group(), path, IDS)
    for rank in worlds(size).run(compute_in_float64, path, IDS):
        assert relative_error(rank.logits, alone.logits) < 1e-12
        assert torch.equal(rank.tokens, alone.tokens)


@pytest.mark.parametrize(("heads", "kv", "size"), [(8, 2, 2), (8, 1, 2), (8, 2, 4)])
def test_neighbours_hand_on_what_each_rank_has(worlds: Worlds, tmp_path: Path, heads: int, kv: int, size: int) -> None:
    """Nothing is brought together between queries and output projection, or gate and down projection."""
    path = save(tmp_path, heads, kv)
    alone, _ = compute_eagerly(Group(), path, IDS)
    for logits, flows in worlds(size).run(compute_eagerly, path, IDS):
        assert relative_error(logits, alone) < 1e-12
        assert len(flows) == 2 * 7
        for name, flow in flows.items():
            is_last = name.endswith(("o_proj", "down_proj"))
            assert (flow.input_is_parallel, flow.gather_output) == (is_last, is_last)


def test_pairs_of_a_mesh_compute_apart(worlds: Worlds) -> None:
    """Also what is a copy."""
    inputs = [IDS, IDS.flip(0, 1)[:1]]
    alone = [compute_in_float64(Group(), DEMO, ids) for ids in inputs]
    for rank, made in enumerate(worlds(4).run(compute_on_axes, DEMO, inputs)):
        for found in made:
            assert relative_error(found.logits, alone[rank // 2].logits) < 1e-6
            assert torch.equal(found.tokens, alone[rank // 2].tokens)


def test_a_pickle_says_that_it_has_no_ranks(worlds: Worlds) -> None:
    for rank, words in enumerate(worlds(2).run(compute_saved, DEMO, IDS)):
        assert words.startswith(f"rank {rank} of 2: the ranks have no process group; make the group from a device mesh")
