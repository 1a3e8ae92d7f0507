"""The head: logits of the tokens of a vocabulary, divided by rows."""

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.errors import ModelError
from qload.geometry import Kind, vocabulary
from qload.plan import Source
from qload.quantization import Treatment
from qload.sharding import order_gathered
from qload.torch.layers.embedding import VocabParallelEmbedding
from qload.torch.layers.flow import take_runs
from qload.torch.layers.vocabulary import VocabularyLayer
from qload.torch.parallel import copy, gather
from qload.torch.sites import Site


class ParallelLMHead(VocabularyLayer):
    """The head: logits of this rank's rows of the vocabulary. It needs no embedding hook.

    With `gather_output` every rank gets those of all tokens, in their order, and none of padding. `token_order` says
    where they lie among the logits of all ranks one after another.
    """

    kind = Kind.LM_HEAD
    class_name = "Linear"
    table: VocabParallelEmbedding | None = None
    """The embedding whose table the head shares, if it is tied."""

    def __init__(
        self,
        vocabulary_size: int,
        features: int,
        site: Site,
        *,
        added: int = 0,
        bias: bool = False,
        gather_output: bool = False,
        multiple: int = 64,
        source: Source | None = None,
        treatment: Treatment | None = None,
    ) -> None:
        super().__init__(
            vocabulary_size,
            features,
            site,
            added=added,
            bias=bias,
            source=source,
            treatment=treatment,
            sharding=vocabulary(multiple),
        )
        self.gather_output = gather_output

    def settle_share(self) -> None:
        super().settle_share()
        self.token_order = order_gathered(self.shards)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., features], which every rank has alike, into logits.

        They are [..., rows of this rank, padding included], or [..., vocabulary size] with `gather_output`. Raises
        ModelError for ids, for a head looks no rows up.
        """
        if not hidden.is_floating_point():
            raise ModelError(
                "a head makes logits of hidden states, and looks no tokens up",
                where=self.name,
                expected="floats",
                found=str(hidden.dtype).removeprefix("torch."),
                remedy="look tokens up in the embedding that the head is tied to, or in one of its own",
            )
        logits = self.compute(copy(hidden, self.group))
        return take_runs(gather(logits, self.group), self.token_order) if self.gather_output else logits

    def tie(self, embedding: VocabParallelEmbedding) -> None:
        """Share the table of an embedding, quantized or not, instead of having one, now and after each load.

        Raises ModelError where the two do not have the same rows of the same tokens.
        """
        if _describe(embedding) != _describe(self):
            raise ModelError(
                "a head can only be tied to a table of its own shape",
                where=self.name,
                expected=_describe(self),
                found=_describe(embedding),
            )
        # Not as a submodule, below which the table's tensors would be listed once more.
        object.__setattr__(self, "table", embedding)
        self.share(embedding)

    def share(self, embedding: VocabParallelEmbedding) -> None:
        """Take an embedding's tensors as they are now in place of the head's own, but for the bias."""
        self.leave_table()
        self.treatment, self.hooks = embedding.treatment, embedding.hooks
        self.quantize_activations = embedding.quantize_activations
        self.localize = embedding.localize
        self.declared, self.derived = {**embedding.declared, **self.declared}, dict(embedding.derived)
        for name in embedding.specs:
            self.register_parameter(name, getattr(embedding, name))
        self.settle_tensors()

    def leave_table(self) -> None:
        """Have no tensors but the bias, which is the head's own."""
        for name in self.specs.keys() - {"bias"}:
            delattr(self, name)
        self.declared = {name: spec for name, spec in self.declared.items() if name == "bias"}
        self.derived = {}

    def take_bias(self) -> None:
        """Put this rank's share of a bias in the place of the whole one, [vocabulary size], that a load read."""
        if "bias" in self.declared:
            parts = self.get_parameter("bias").detach().split([part.size for part in self.geometry.parts])
            cuts = self.shard.out
            shares = [
                F.pad(part[cut.start : cut.stop], (0, cut.padding)) for part, cut in zip(parts, cuts, strict=True)
            ]
            self.set_tensor("bias", torch.cat(shares))


def _describe(layer: VocabularyLayer) -> str:
    """The rows of a vocabulary, and those that a rank has of them, in words."""
    whole, own = (" + ".join(str(part.size) for part in held.parts) for held in (layer.geometry, layer.local))
    share = f" ({own} on rank {layer.shard.rank} of {layer.shard.size})" if own != whole else ""
    return f"{whole} x {layer.local.in_features}{share}"
