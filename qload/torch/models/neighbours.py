"""Which layers of a divided model hand on to each other what each rank has of it, without a collective between.

Every layer takes and gives whole features until it is known to have such neighbours: transformers' plan for tensor
parallelism says so, for the architectures that have one. Elsewhere a model computes the same, and ranks talk more.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from qload.layout import Dim
from qload.roles import is_column, is_row
from qload.torch.layers import Layer
from qload.torch.layers.linear import Linear
from qload.torch.models.caching import SCALES

_APART_AFTER, _APART_BEFORE = "colwise", "rowwise"
_WHOLE = (
    *("colwise_gather_output", "colwise_rep", "rowwise_split_input", "rowwise_rep"),
    *("replicated_with_grad_allreduce", "replicate", "mla_kv_a_proj"),
)
_OF_EXPERTS = ("moe_tp_experts", "packed_colwise", "packed_rowwise", _APART_AFTER, _APART_BEFORE)
_QUERY, _KEY = "q_proj", "k_proj"


def join_neighbours(model: PreTrainedModel, layers: Mapping[str, Layer]) -> None:
    """Let the layers of every block that transformers' plan knows throughout hand on what each rank has."""
    plan: Mapping[str, str] = getattr(model, "_tp_plan", None) or {}
    for block in _find_blocks(model, layers, plan):
        attentions = {name.rpartition(".")[0] for name in block if name.endswith(f".{_KEY}")}
        if not all(_are_even(block)) or not all(_has_whole_heads(block)):
            continue
        if not all(_can_attend(model, layers, each) for each in attentions):
            continue
        for layer, style in block.values():
            is_after = style == _APART_AFTER
            flow = replace(layer.flow, gather_output=False) if is_after else replace(layer.flow, input_is_parallel=True)
            layer.set_flow(flow)
        for each in attentions:
            _count_groups(model.get_submodule(each), layers[f"{each}.{_QUERY}"], layers[f"{each}.{_KEY}"])
            if (scales := layers.get(f"{each}.{SCALES}")) is not None:
                scales.join(layers[f"{each}.{_KEY}"].group)


Block = Mapping[str, tuple[Linear, str]]
"""What stands in one layer of a model below one name, as its attention: the layers, with their styles in the plan."""


def _find_blocks(model: PreTrainedModel, layers: Mapping[str, Layer], plan: Mapping[str, str]) -> Iterator[Block]:
    """The blocks of which every module and tensor that the plan names is a layer of ours, or stays whole."""
    blocks: dict[str, dict[str, tuple[Linear, str]]] = defaultdict(dict)
    spoiled: set[str] = set()
    for name in _names(model):
        style = plan.get(re.sub(r"\d+", "*", name))
        layer = layers.get(name)
        is_ours = (style == _APART_AFTER and is_column(name)) or (style == _APART_BEFORE and is_row(name))
        if is_ours and isinstance(layer, Linear):
            blocks[_block_of(name)][name] = (layer, style or "")
        elif style is not None and style not in _WHOLE and not (".experts" in name and style in _OF_EXPERTS):
            spoiled.add(_block_of(name))
    return (block for name, block in blocks.items() if name not in spoiled)


def _names(model: nn.Module) -> Iterable[str]:
    return (*dict(model.named_modules()), *dict(model.named_parameters()))


def _block_of(name: str) -> str:
    """The block that a module or tensor is in: `model.layers.3.mlp` of `model.layers.3.mlp.down_proj`."""
    words = name.split(".")
    last = max((number for number, word in enumerate(words[:-1]) if word.isdigit()), default=-1)
    return ".".join(words[: last + 2])


def _are_even(block: Block) -> Iterator[bool]:
    """Of each layer whether ranks can have as many of the features each that it hands on, or is handed.

    A layer that is whole on each rank, or divided the other way, does not say.
    """
    for layer, style in block.values():
        geometry = layer.geometry
        count = geometry.parts[0].heads or geometry.out_features if style == _APART_AFTER else geometry.in_features
        yield count % layer.group.size == 0 or geometry.parts[0].replicable


def _has_whole_heads(block: Block) -> Iterator[bool]:
    """Of each projection of an attention whether a rank's share of it is one of whole heads."""
    by_heads = {layer.geometry.out_features for layer, _ in block.values() if layer.geometry.parts[0].heads is not None}
    for name, (layer, style) in block.items():
        if style == _APART_AFTER and "att" in _block_of(name).rpartition(".")[2]:
            yield layer.geometry.out_features in by_heads


def _can_attend(model: PreTrainedModel, layers: Mapping[str, Layer], attention: str) -> bool:
    """Whether each rank can attend with its own heads: their size is known, and caches have no scales by head."""
    query, key = layers.get(f"{attention}.{_QUERY}"), layers.get(f"{attention}.{_KEY}")
    scales = layers.get(f"{attention}.{SCALES}")
    if query is None or key is None:
        return False
    if scales is not None and any(spec.layout.follows(Dim.OUT) for spec in scales.declared.values()):
        return False
    module = model.get_submodule(attention)
    size = getattr(module, "head_dim", None)
    if isinstance(size, int) and any(_count_rows(layer) % size for layer in (query, key)):
        return False
    return hasattr(module, "num_key_value_groups") or query.group.size <= (key.geometry.parts[0].heads or 0)


def _count_groups(attention: nn.Module, query: Layer, key: Layer) -> None:
    """Say how many heads share keys and values on a rank: with fewer KV heads than ranks, not as many as before."""
    if hasattr(attention, "num_key_value_groups"):
        setattr(attention, "num_key_value_groups", _count_heads(query) // _count_heads(key))  # noqa: B010


def _count_rows(layer: Layer) -> int:
    """The output features that a rank has of a projection."""
    part = layer.geometry.parts[0]
    return part.size // (part.heads or 1) * _count_heads(layer)


def _count_heads(layer: Layer) -> int:
    """The heads that a rank has of a projection; at least one."""
    return max(1, (layer.geometry.parts[0].heads or 1) // layer.group.size)
