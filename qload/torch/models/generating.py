"""Generating on several ranks at once, which must draw the same tokens."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qload.errors import ParallelError
from qload.torch.parallel import Group

_GROUP = "_qload_group"


def generate_together(model: PreTrainedModel, group: Group) -> None:
    """Let a model's `generate` start on every rank from the same random state, which is rank 0's, and input."""
    setattr(model, _GROUP, group)
    setattr(model, "generate", generate.__get__(model))  # noqa: B010


def generate(self: PreTrainedModel, inputs: Tensor | None = None, *args: Any, **options: Any) -> Any:
    """As the model's class generates, on all ranks of its group at the same time.

    Raises ParallelError on every rank where their inputs differ.
    """
    group: Group = getattr(self, _GROUP)
    ids = inputs if inputs is not None else options.get("input_ids")
    _check_inputs(ids, group, self.device)
    _share_random_state(group, self.device)
    own: Any = type(self)
    return own.generate(self, inputs, *args, **options)


def _check_inputs(ids: Tensor | None, group: Group, device: torch.device) -> None:
    """Compare a few numbers that inputs which differ will hardly share: of other shapes, ranks would wait forever."""
    numbers = torch.zeros(3, dtype=torch.int64, device=device)
    if ids is not None:
        places = torch.arange(1, ids.numel() + 1, device=ids.device)
        numbers = torch.stack((places.sum(), ids.sum(), (ids.flatten() * places).sum())).to(device, torch.int64)
    found = group.gather(numbers[None], 0)
    if not bool((found == found[0]).all()):
        raise ParallelError(
            "the ranks are to generate from different inputs",
            expected="the same on each",
            remedy="hand all ranks of the mesh's axis the same tokens",
        )


def _share_random_state(group: Group, device: torch.device) -> None:
    torch.set_rng_state(group.broadcast(torch.get_rng_state().to(device)).cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(group.broadcast(torch.cuda.get_rng_state(device).to(device)).cpu(), device)
