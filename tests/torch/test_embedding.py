"""Embeddings that compute with their rows, on a quantized table."""

from typing import Any

import torch
from torch import Tensor, nn

from qload.torch.models.embedding import computes_by_row


class Scaled(nn.Embedding):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__(8, 3, padding_idx=7, device="meta")
        self.register_buffer("scale", torch.tensor(2.0, device="meta"))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale


class Placed(nn.Embedding):
    """One that looks at which rows are asked for."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * input[..., None]


class Moved(nn.Embedding):
    """One that asks for other rows, as learned positions do."""

    def forward(self, input: Tensor) -> Any:
        return super().forward(input + 2)


def test_what_is_made_of_a_row_alone() -> None:
    assert computes_by_row(Scaled())
    assert not computes_by_row(Placed(8, 3))
    assert not computes_by_row(Moved(8, 3))
