"""Embedding tables, divided by rows or by columns."""

import torch
from torch import Tensor

from qload.errors import CapabilityError, LayoutError, ModelError
from qload.geometry import Sharding, vocabulary, vocabulary_columns
from qload.layout import Dim
from qload.plan import Source
from qload.quantization import Treatment
from qload.torch.layers.vocabulary import VocabularyLayer
from qload.torch.norms import NormBound
from qload.torch.parallel import gather, reduce
from qload.torch.sites import Site
from qload.torch.tokens import as_places, check_ids, find_rows, keep_rows


class VocabParallelEmbedding(VocabularyLayer):
    """An embedding table of which this rank holds some rows, and the padding's share; or some columns.

    `num_embeddings` rows are those of the base vocabulary, to which `added` ones are added. `sharding_dim` is 0 for
    rows and 1 for columns. Ids that the vocabulary does not have raise TokenError, or with `zeros_out_of_range` give
    zeros. `padding_idx`, `max_norm` and `norm_type` are as of `torch.nn.Embedding`, for tables that are not quantized.

    Raises CapabilityError, also for every subclass, where the table's method cannot look rows up; LayoutError for sizes
    that no vocabulary has, ShardError for columns that cannot be divided evenly, and ModelError for a quantized table
    that is to be trained.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        site: Site,
        *,
        added: int = 0,
        sharding_dim: int = 0,
        multiple: int = 64,
        zeros_out_of_range: bool = False,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        source: Source | None = None,
        treatment: Treatment | None = None,
    ) -> None:
        sharding = _choose_sharding(sharding_dim, multiple, site.name)
        super().__init__(
            num_embeddings, embedding_dim, site, added=added, source=source, treatment=treatment, sharding=sharding
        )
        self.zeros_out_of_range = zeros_out_of_range
        self.padding_idx = self._find_padding(padding_idx)
        self.norm_bound = NormBound(max_norm, norm_type) if max_norm is not None else None
        if self.scheme is not None and (padding_idx is not None or max_norm is not None):
            raise ModelError(
                "a quantized table is not trained, and takes no padding_idx or max_norm",
                where=site.name,
                found=self.treatment.label,
                remedy="leave the table unquantized, or these out",
            )

    def check_hooks(self) -> None:
        """Raises CapabilityError where the table's method cannot look rows up."""
        if self.hooks.embedding is None:
            raise CapabilityError(self.treatment.method.name, "qload_embedding", self.name)

    @property
    def num_embeddings(self) -> int:
        """The tokens of the vocabulary, with the added ones."""
        return self.vocabulary_size

    @property
    def embedding_dim(self) -> int:
        """The features of a row, on all ranks together."""
        return self.geometry.in_features

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...], which every rank has alike, into [..., embedding_dim] on every rank."""
        return self._join_ranks(self.look_up(ids))

    def look_up(self, ids: Tensor) -> Tensor:
        """This rank's share of `forward`: of rows, with zeros for those that other ranks hold, or of columns."""
        flat = ids.reshape(-1)
        flat = (
            as_places(flat, self.name) if self.zeros_out_of_range else check_ids(flat, self.vocabulary_size, self.name)
        )
        rows, owned = find_rows(flat, self.index.spans)
        if self.norm_bound is not None:
            self.norm_bound.impose(
                self.get_parameter("weight"), rows[owned], self.group if Dim.IN in self.divided else None
            )
        found = keep_rows(self._look_up(rows), owned).to(self.dtype)
        if self.padding_idx is not None:
            found = torch.where((flat == self.padding_idx)[:, None], found.detach(), found)
        return found.reshape(*ids.shape, self.local.in_features)

    def _look_up(self, rows: Tensor) -> Tensor:
        """Rows of this rank's table: [n] into [n, width]."""
        hook, pieces = self.hooks.embedding, self.pieces()
        if hook is None:
            raise CapabilityError(self.treatment.method.name, "qload_embedding", self.name)
        if len(pieces) == 1:
            return hook(pieces[0], rows)
        base, added = pieces
        first = self.index.base.padded_size
        is_added = rows >= first
        found = hook(added, torch.where(is_added, rows - first, 0))
        return torch.where(is_added[:, None], found, hook(base, torch.where(is_added, 0, rows)))

    def _join_ranks(self, found: Tensor) -> Tensor:
        return gather(found, self.group) if Dim.IN in self.divided else reduce(found, self.group)

    def _find_padding(self, padding_idx: int | None) -> int | None:
        if padding_idx is None:
            return None
        if not -self.vocabulary_size <= padding_idx < self.vocabulary_size:
            raise ModelError(
                "the vocabulary has no token that could be padding",
                where=self.name,
                expected=f"padding_idx of {-self.vocabulary_size} to {self.vocabulary_size - 1}",
                found=str(padding_idx),
            )
        return padding_idx % self.vocabulary_size


def _choose_sharding(dim: int, multiple: int, name: str) -> Sharding:
    if type(dim) is not int or dim not in (0, 1):
        raise LayoutError(
            "a table is divided by rows or by columns", where=name, expected="sharding_dim 0 or 1", found=repr(dim)
        )
    return (vocabulary, vocabulary_columns)[dim](multiple)
