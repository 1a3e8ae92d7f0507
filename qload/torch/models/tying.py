"""Layers that share one table, as a model's config or its checkpoint has it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from qload.findings import Finding, report
from qload.quantization import Quantization, Treatment
from qload.torch.dtypes import torch_dtype
from qload.torch.layers import Layer, ParallelLMHead, VocabParallelEmbedding
from qload.torch.models.naming import Names
from qload.torch.models.replacing import put
from qload.torch.sites import Site


@dataclass(frozen=True, slots=True)
class Ties:
    """What the config ties: `shared` modules have no tensors of their own; `stored` ones have, though."""

    shared: Mapping[str, str]
    stored: Mapping[str, str]

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
        if target in sources and owner not in sources:
            sources[owner] = sources.pop(target)
            tensors[f"{owner}.weight"] = tensors.pop(f"{target}.weight", f"{target}.weight")
    return replace(names, sources=sources, tensors=tensors)


def find_ties(model: PreTrainedModel, names: Names) -> Ties:
    """What a model's config ties, by module."""
    tied = _tied_modules(model)
    shared = {target: owner for target, owner in tied.items() if target not in names.sources}
    return Ties(shared, {target: owner for target, owner in tied.items() if target not in shared})


def _tied_modules(model: PreTrainedModel) -> dict[str, str]:
    """Transformers keeps ties by parameter; the owner of each tied module."""
    return {
        target.rpartition(".")[0]: owner.rpartition(".")[0] for target, owner in model.all_tied_weights_keys.items()
    }


def tie(model: PreTrainedModel, ties: Ties, quantization: Quantization) -> None:
    """Share the tables of loaded layers, and keep transformers from undoing it."""
    for name, source in ties.shared.items():
        _share(model, name, source, quantization)
    for name, source in ties.stored.items():
        if _are_equal(model.get_submodule(name), model.get_submodule(source)):
            _share(model, name, source, quantization)
    model.all_tied_weights_keys = {}
    model.config.tie_word_embeddings = False


def _share(model: PreTrainedModel, name: str, source: str, quantization: Quantization) -> None:
    owner, tied = model.get_submodule(source), model.get_submodule(name)
    if isinstance(tied, nn.Embedding | VocabParallelEmbedding):
        put(model, name, owner)
    elif isinstance(owner, VocabParallelEmbedding | nn.Embedding):
        put(model, name, _make_head(name, tied, owner, quantization))
    else:
        tied.weight = owner.weight


def _make_head(
    name: str, head: nn.Module, table: VocabParallelEmbedding | nn.Embedding, quantization: Quantization
) -> ParallelLMHead:
    """A head on a table of ours, or on one that transformers computes more with, which is never quantized."""
    if isinstance(table, VocabParallelEmbedding):
        site = Site(quantization, name, dtype=torch_dtype(table.geometry.dtype))
        treatment = table.treatment
    else:
        site = Site(quantization, name, dtype=table.weight.dtype)
        treatment = Treatment(quantization.unquantized, None)
    tied = ParallelLMHead(table.num_embeddings, table.embedding_dim, site, multiple=1, treatment=treatment)
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
