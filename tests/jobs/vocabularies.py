"""Tables and heads of a vocabulary, on the ranks of a group."""

from typing import Any

import torch
from samples import make_quantization
from torch import Tensor, nn

import qload
from qload.hookspecs import ModuleInfo
from qload.plan import Source
from qload.quantization import unquantized
from qload.torch import ParallelLMHead, Site, VocabParallelEmbedding
from qload.torch.parallel import Group


def look_up(group: Group, weight: Tensor, ids: Tensor, multiple: int, options: dict[str, Any] | None = None) -> Tensor:
    """The rows of a plain table."""
    quantization = unquantized(qload.Registry.discover())
    rows, width = weight.shape
    table = VocabParallelEmbedding(rows, width, Site(quantization, "t", group), multiple=multiple, **(options or {}))
    qload.load_tensors(table, {"t.weight": weight}, quantization, kernels=())
    found: Tensor = table(ids)
    return found


def compute_logits(
    group: Group, weight: Tensor, bias: Tensor, hidden: Tensor, multiple: int, gathers: bool
) -> tuple[Tensor, Tensor]:
    """The logits of a plain head, and the gradient of a loss that weighs them by their places."""
    quantization = unquantized(qload.Registry.discover())
    site, (rows, width) = Site(quantization, "h", group), weight.shape
    head = ParallelLMHead(rows, width, site, bias=True, gather_output=gathers, multiple=multiple)
    qload.load_tensors(head, {"h.weight": weight, "h.bias": bias}, quantization, kernels=())
    leaf = hidden.clone().requires_grad_()
    logits = head(leaf)
    (logits * torch.linspace(-1, 1, logits.shape[-1])).sum().backward()
    return logits.detach(), leaf.grad if leaf.grad is not None else torch.empty(0)


def use_vocabulary(
    group: Group,
    section: dict[str, Any],
    tensors: dict[str, Tensor],
    sizes: dict[str, int],
    sources: list[Source],
    ids: Tensor,
    hidden: Tensor,
) -> dict[str, Tensor]:
    """What a table makes of ids, and a head of its own and one tied to the table of hidden states."""
    quantization = make_quantization(section, qload.Registry.discover())
    treatment = quantization.treat(ModuleInfo(("t",), stored=frozenset(name.split(".")[1] for name in tensors)))
    rows, width, added, multiple = (sizes[name] for name in ("rows", "width", "added", "multiple"))
    model: Any = nn.Module()
    site = Site(quantization, "t", group)
    model.table = VocabParallelEmbedding(rows, width, site, added=added, multiple=multiple, treatment=treatment)
    model.tied, model.head = (
        ParallelLMHead(
            rows, width, site, added=added, multiple=multiple, treatment=treatment, bias=True, gather_output=True
        )
        for _ in range(2)
    )
    model.table.sources = model.head.sources = tuple(sources)
    model.tied.tie(model.table)
    bias = torch.cat([tensor for name, tensor in tensors.items() if name.endswith(".bias")])
    qload.load_tensors(model, {**tensors, "tied.bias": bias}, quantization, kernels=())
    if model.tied.pieces()[0].scheme is not model.table.pieces()[0].scheme:
        raise ValueError("the tied head computes with something else than its table")
    return {"rows": model.table(ids), "logits": model.head(hidden), "tied": model.tied(hidden)}


def train_table(group: Group, weight: Tensor, ids: Tensor, factors: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """The rows of a table, its own share of the weight afterwards, and the gradient of that."""
    quantization = unquantized(qload.Registry.discover())
    rows, width = weight.shape
    table = VocabParallelEmbedding(rows, width, Site(quantization, "t", group), multiple=1, **options)
    qload.load_tensors(table, {"t.weight": weight}, quantization, kernels=())
    share = table.get_parameter("weight").requires_grad_()
    found = table(ids)
    (found * factors).sum().backward()
    return {"found": found.detach(), "weight": share.detach(), "gradient": share.grad}
