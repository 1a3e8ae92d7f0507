"""Tables and heads of a vocabulary, on the ranks of a group."""

import torch
from torch import Tensor

import qload
from qload.quantization import unquantized
from qload.torch import ParallelLMHead, Site, VocabParallelEmbedding
from qload.torch.parallel import Group


def look_up(group: Group, weight: Tensor, ids: Tensor, multiple: int) -> Tensor:
    """The rows of a plain table."""
    quantization = unquantized(qload.Registry.discover())
    rows, width = weight.shape
    table = VocabParallelEmbedding(rows, width, Site(quantization, "t", group), multiple=multiple)
    qload.load_tensors(table, {"t.weight": weight}, quantization)
    found: Tensor = table(ids)
    return found


def compute_logits(
    group: Group, weight: Tensor, bias: Tensor, hidden: Tensor, multiple: int, gathers: bool
) -> tuple[Tensor, Tensor]:
    """The logits of a plain head, and the gradient of a loss that weighs them by their places."""
    quantization = unquantized(qload.Registry.discover())
    site, (rows, width) = Site(quantization, "h", group), weight.shape
    head = ParallelLMHead(rows, width, site, bias=True, gather_output=gathers, multiple=multiple)
    qload.load_tensors(head, {"h.weight": weight, "h.bias": bias}, quantization)
    leaf = hidden.clone().requires_grad_()
    logits = head(leaf)
    (logits * torch.linspace(-1, 1, logits.shape[-1])).sum().backward()
    return logits.detach(), leaf.grad if leaf.grad is not None else torch.empty(0)
