"""What a module's replacement is made from: the model, the checkpoint's names, and its quantization."""

from collections.abc import Container, Hashable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qload.errors import ModelError
from qload.geometry import Geometry, Sharding, replicated
from qload.plan import Source
from qload.quantization import Quantization, Treatment
from qload.roles import Heads, settle_sharding
from qload.torch.models.building import kept_dtype
from qload.torch.models.naming import Names
from qload.torch.parallel import Group
from qload.torch.sites import Site


@dataclass(frozen=True, slots=True)
class Context:
    """What all replacements of one model are made from; `shared` tensors are left to whoever ties them.

    `group` has the ranks that the model is divided over, and `heads` its attention's heads, which stay whole;
    `by_experts` divides mixtures by experts, in place of each expert.
    """

    model: PreTrainedModel
    names: Names
    quantization: Quantization
    dtype: torch.dtype
    shared: Container[str]
    group: Group
    heads: Heads
    by_experts: bool = False
    _shardings: dict[Hashable, Sharding] = field(default_factory=dict, init=False, repr=False)

    def source(self, name: str) -> Source:
        """The checkpoint's module for one of the model's; one of the same name where it has none."""
        found = self.names.sources.get(name, (Source(name),))
        if len(found) > 1:
            prefixes = ", ".join(source.prefix for source in found)
            raise ModelError("several modules of the checkpoint fill one of the model", where=name, found=prefixes)
        return found[0]

    def source_above(self, name: str, children: Iterable[str]) -> Source:
        """As `source`, for a module that may store nothing itself: it is where the modules below it are."""
        if name in self.names.sources:
            return self.source(name)
        for child in children:
            for source in self.names.sources.get(f"{name}.{child}", ()):
                above, _, last = source.prefix.rpartition(".")
                if last == child:
                    return Source(above)
        return Source(name)

    def is_converted(self, name: str) -> bool:
        """Whether a module's weight is made of dense tensors that no layer of ours could read as they lie."""
        return name not in self.names.sources and f"{name}.weight" in self.names.converted

    def site(self, name: str, checkpoint_name: str) -> Site:
        """The site of a module of the model, divided over all ranks."""
        return Site(self.quantization, checkpoint_name, self.group, kept_dtype(self.model, name, self.dtype))

    def choose_sharding(self, name: str, geometry: Geometry, treatment: Treatment) -> Sharding:
        """How a module of the checkpoint is divided, as whoever plans without the model has it too.

        It is worked out once for all that end with the same word and are alike. Raises ShardError where no way fits,
        with the numbers of ranks for which one does.
        """
        if self.group.size == 1:
            return replicated
        key = (name.rpartition(".")[2], treatment.method.name, treatment.scheme, geometry)
        found = self._shardings.get(key)
        if found is None:
            specs = self.quantization.declare(treatment, geometry)
            found = self._shardings[key] = settle_sharding(name, geometry, specs, self.group.size)
        return found


def class_names(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's class and its bases, as configs call them."""
    names = tuple(base.__name__ for base in type(module).__mro__ if issubclass(base, nn.Module))
    return ("Linear", *names) if isinstance(module, Conv1D) else names
