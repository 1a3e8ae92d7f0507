"""Layers that share one table, as a model's config or its checkpoint has it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from qload.checkpoint.names import split_name
from qload.findings import Finding, report
from qload.quantization import Quantization, Treatment
from qload.torch.dtypes import torch_dtype
from qload.torch.layers import Layer, ParallelLMHead, VocabParallelEmbedding
from qload.torch.layers.linear import Linear
from qload.torch.models.embedding import ComputedEmbedding
from qload.torch.models.naming import Names
from qload.torch.models.replacing import put
from qload.torch.sites import Site


@dataclass(frozen=True, slots=True)
class Ties:
    """What the config ties, each to its owner in the model.

    `shared` modules have no weight of their own; `stored` ones have, though. `tensors` are those that are not
    a module's weight, as a head's bias.
    """

    shared: Mapping[str, str]
    stored: Mapping[str, str]
    tensors: Mapping[str, str]

    @property
    def names(self) -> frozenset[str]:
        """The tensors of the model that are another one's."""
        return frozenset({f"{module}.weight" for module in self.shared} | self.tensors.keys())

    @property
    def findings(self) -> Iterator[Finding]:
        for module, source in self.stored.items():
            yield report(
                "QL206",
                f"the config ties it to {source}, and the checkpoint stores it; what is stored is used",
                where=module,
                remedy="set tie_word_embeddings to false, or leave the tensors out",
            )


def settle_names(model: PreTrainedModel, names: Names) -> Names:
    """Where a checkpoint stores only the other end of a tie, let its owner in the model read that."""
    sources, tensors = dict(names.sources), dict(names.tensors)
    for target, owner in _tied_modules(model).items():
        if target in sources and owner not in sources and f"{owner}.weight" not in names.converted:
            sources[owner] = sources.pop(target)
            tensors[f"{owner}.weight"] = tensors.pop(f"{target}.weight", f"{target}.weight")
    for target, owner in _tied_tensors(model).items():
        if target in tensors and owner not in tensors:
            tensors[owner] = tensors.pop(target)
    return replace(names, sources=sources, tensors=tensors)


def find_ties(model: PreTrainedModel, names: Names) -> Ties:
    """What a model's config ties, and its checkpoint does not store or does."""
    tied = _tied_modules(model)
    # Most configs tie nothing, and names are many.
    there = (*names.tensors, *names.converted) if tied else ()
    stored = {split_name(name)[0] for name in there if not name.endswith(".bias")}
    return Ties(
        {target: owner for target, owner in tied.items() if target not in stored},
        {target: owner for target, owner in tied.items() if target in stored},
        {target: owner for target, owner in _tied_tensors(model).items() if target not in names.tensors},
    )


def _tied_modules(model: PreTrainedModel) -> dict[str, str]:
    """Transformers keeps ties by parameter; the owner of each module whose weight is tied."""
    weights = ((target, owner) for target, owner in model.all_tied_weights_keys.items() if _is_weight(target, owner))
    return {split_name(target)[0]: split_name(owner)[0] for target, owner in weights}


def _tied_tensors(model: PreTrainedModel) -> dict[str, str]:
    """The owners of the other tied parameters."""
    return {target: owner for target, owner in model.all_tied_weights_keys.items() if not _is_weight(target, owner)}


def _is_weight(target: str, owner: str) -> bool:
    return target.endswith(".weight") and owner.endswith(".weight")


def tie(model: PreTrainedModel, ties: Ties, quantization: Quantization) -> None:
    """Share the tables of loaded layers, and keep transformers from undoing it."""
    for name, source in ties.tensors.items():
        module, leaf = split_name(name)
        model.get_submodule(module).register_parameter(leaf, model.get_parameter(source))
    for name, source in ties.shared.items():
        _share(model, name, source, quantization)
    for name, source in ties.stored.items():
        if _are_equal(model.get_submodule(name), model.get_submodule(source)):
            _share(model, name, source, quantization)
    model.all_tied_weights_keys = {}
    # Transformers would tie anew by the config, which stays as it is: some models compute by it.
    setattr(model, "tie_weights", _keep_ties)  # noqa: B010


def _keep_ties(*_: object, **__: object) -> None:
    """Stands in for a model's own way to tie, for what is to be shared is."""


def _share(model: PreTrainedModel, name: str, source: str, quantization: Quantization) -> None:
    owner, tied = model.get_submodule(source), model.get_submodule(name)
    table = owner.table if isinstance(owner, ComputedEmbedding) else owner
    if isinstance(tied, nn.Embedding | VocabParallelEmbedding) or _is_same(tied, owner):
        put(model, name, owner)
    elif isinstance(table, VocabParallelEmbedding):
        put(model, name, _make_head(name, tied, table, quantization))
    elif isinstance(owner, nn.Embedding):
        put(model, name, _make_head(name, tied, owner, quantization))
    else:
        weight = owner.weight
        is_dense = isinstance(weight, nn.Parameter)
        tied.weight = weight if is_dense else nn.Parameter(weight, requires_grad=False)  # type: ignore[arg-type]


def _is_same(tied: nn.Module, owner: nn.Module) -> bool:
    """Whether a linear layer of ours computes all that a tied one does: also its bias is that one's."""
    is_plain = type(tied).forward is nn.Linear.forward or isinstance(tied, Linear)
    return isinstance(owner, Linear) and is_plain and getattr(tied, "bias", None) is getattr(owner, "bias", None)


def _make_head(
    name: str, head: nn.Module, table: VocabParallelEmbedding | nn.Embedding, quantization: Quantization
) -> ParallelLMHead:
    """A head on a table of ours, or on one that transformers computes more with, which is never quantized."""
    if isinstance(table, VocabParallelEmbedding):
        site = Site(quantization, name, table.group, torch_dtype(table.geometry.dtype))
        treatment = table.treatment
    else:
        site = Site(quantization, name, dtype=table.weight.dtype)
        treatment = Treatment(quantization.unquantized, None)
    has_bias = getattr(head, "bias", None) is not None
    tied = ParallelLMHead(
        table.num_embeddings,
        table.embedding_dim,
        site,
        bias=has_bias,
        gather_output=True,
        multiple=1,
        treatment=treatment,
    )
    if isinstance(table, VocabParallelEmbedding):
        tied.tie(table)
    else:
        tied.weight = table.weight
    tied.register_parameter("bias", getattr(head, "bias", None))
    return tied


def _are_equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers hold the same plain weight, so that one copy of it is enough."""
    plain = all(isinstance(each, Layer) and each.scheme is None for each in (one, other))
    return plain and torch.equal(one.get_parameter("weight"), other.get_parameter("weight"))
