"""Embeddings of transformers that compute more than a look-up, on a table of ours."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qload.torch.layers import VocabParallelEmbedding


class ComputedEmbedding(nn.Module):
    """A table, and the module that computes with the rows looked up in it, as one that scales them does."""

    def __init__(self, table: VocabParallelEmbedding, module: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.module = module
        # Without rows, for those are the table's; yet there, for transformers initialises what a module has.
        module.weight = nn.Parameter(torch.empty(0, table.embedding_dim, dtype=table.dtype), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] into [..., embedding_dim]."""
        places = torch.arange(ids.numel(), device=ids.device).reshape(ids.shape)
        computed: Tensor = functional_call(self.module, {"weight": self.table(ids.reshape(-1))}, places)
        return computed


def computes_by_row(module: nn.Embedding) -> bool:
    """Whether an embedding makes of every id what it makes of that id's row alone: tried on a tiny table."""
    # It says which row is not trained, and would have to be one of the tiny table's.
    module.padding_idx = None
    table = torch.linspace(-2, 7, 12, device="cpu").reshape(4, 3)
    ids = torch.tensor([[2, 0, 3]], device="cpu")
    buffers = {name: torch.ones_like(buffer, device="cpu") for name, buffer in module.named_buffers()}
    try:
        whole = functional_call(module, {"weight": table, **buffers}, ids)
        by_row = functional_call(module, {"weight": table[ids[0]], **buffers}, torch.arange(3, device="cpu")[None])
    except Exception:  # whatever the code of an architecture makes of sizes that are not its own
        return False
    return isinstance(whole, Tensor) and whole.shape == (1, 3, 3) and torch.equal(whole, by_row)
