"""The vocabulary's layers: an embedding table and a head, divided by rows."""

import torch
from torch import Tensor

from qload.errors import CapabilityError, ModelError
from qload.geometry import Kind, single, vocabulary
from qload.plan import Source
from qload.quantization import Treatment
from qload.sharding import order_gathered
from qload.torch.dtypes import dtype_code
from qload.torch.layers.base import Layer
from qload.torch.layers.linear import take_runs
from qload.torch.parallel import copy, gather, reduce
from qload.torch.sites import Site


class _VocabularyLayer(Layer):
    kind = Kind.EMBEDDING
    class_name = "Embedding"

    def __init__(
        self,
        vocabulary_size: int,
        features: int,
        site: Site,
        *,
        bias: bool = False,
        multiple: int = 64,
        source: Source | None = None,
        treatment: Treatment | None = None,
    ) -> None:
        geometry = single(vocabulary_size, features, kind=self.kind, dtype=dtype_code(site.dtype), bias=bias)
        source = source or Source(site.name)
        treatment = treatment or site.treat((source,), self.kind, (self.class_name,))
        super().__init__(geometry, (source,), site, treatment, vocabulary(multiple))
        self.vocabulary_size = vocabulary_size


class VocabParallelEmbedding(_VocabularyLayer):
    """An embedding table of which this rank holds some rows, and the padding's share.

    Raises CapabilityError, also for every subclass, where the table's method cannot look rows up.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        site: Site,
        *,
        multiple: int = 64,
        source: Source | None = None,
        treatment: Treatment | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, site, multiple=multiple, source=source, treatment=treatment)
        if self.hooks.embedding is None:
            raise CapabilityError(self.treatment.method.name, "qload_embedding", site.name)

    @property
    def num_embeddings(self) -> int:
        return self.vocabulary_size

    @property
    def embedding_dim(self) -> int:
        return self.local.in_features

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...], which every rank has alike, into [..., embedding_dim] on every rank."""
        return reduce(self.look_up(ids), self.group)

    def look_up(self, ids: Tensor) -> Tensor:
        """This rank's share of `forward`, to be summed: zeros for the rows that other ranks hold."""
        look_up = self._look_up if self.shard.size == 1 else self._look_up_owned
        return look_up(ids.reshape(-1)).to(self.dtype).reshape(*ids.shape, self.embedding_dim)

    def _look_up(self, ids: Tensor) -> Tensor:
        hook = self.hooks.embedding
        if hook is None:
            raise CapabilityError(self.treatment.method.name, "qload_embedding", self.name)
        return hook(self.pieces()[0], ids)

    def _look_up_owned(self, ids: Tensor) -> Tensor:
        cut = self.shard.out[0]
        owned = (ids >= cut.start) & (ids < cut.stop)
        rows = self._look_up(torch.where(owned, ids - cut.start, 0))
        return torch.where(owned[:, None], rows, torch.zeros((), dtype=rows.dtype, device=rows.device))


class ParallelLMHead(_VocabularyLayer):
    """The head: logits of this rank's rows of the vocabulary. It needs no embedding hook.

    With `gather_output` every rank gets those of all tokens, in their order, and none of padding.
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
        bias: bool = False,
        gather_output: bool = False,
        multiple: int = 64,
        source: Source | None = None,
        treatment: Treatment | None = None,
    ) -> None:
        super().__init__(
            vocabulary_size, features, site, bias=bias, multiple=multiple, source=source, treatment=treatment
        )
        self.gather_output = gather_output
        self.settle_share()

    def settle_share(self) -> None:
        super().settle_share()
        self.token_order = order_gathered(self.shards)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., features], which every rank has alike, into logits.

        They are [..., rows of this rank, padding included], or [..., vocabulary size] with `gather_output`.
        """
        logits = self.compute(copy(hidden, self.group))
        return take_runs(gather(logits, self.group), self.token_order) if self.gather_output else logits

    def tie(self, embedding: VocabParallelEmbedding) -> None:
        """Share the table of an embedding, quantized or not, instead of having one, now and after each load.

        Raises ModelError where the two are not alike.
        """
        if embedding.local.extents != self.local.extents:
            raise ModelError(
                "a head can only be tied to a table of its own shape",
                where=self.name,
                expected=f"{self.local.out_features} x {self.local.in_features}",
                found=f"{embedding.local.out_features} x {embedding.local.in_features}",
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
        self._select()

    def leave_table(self) -> None:
        """Have no tensors but the bias, which is the head's own."""
        for name in self.specs.keys() - {"bias"}:
            delattr(self, name)
        self.declared = {name: spec for name, spec in self.declared.items() if name == "bias"}
        self.derived = {}
