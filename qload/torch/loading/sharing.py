"""Tensors that a module has under several names: heads tied to a table, and parameters that are one object."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from qload.findings import Finding, report
from qload.torch.layers import Layer, ParallelLMHead


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which of a module's tensors are others of its tensors: the owner's name by the name of each."""

    owners: Mapping[str, str]
    heads: tuple[ParallelLMHead, ...]

    def findings(self, stored: Iterable[str], prefix: str) -> Iterator[Finding]:
        """A warning for each that a checkpoint stores all the same."""
        for name in sorted(self.owners.keys() & {each.removeprefix(prefix) for each in stored}):
            yield report(
                "QL206",
                f"the model ties it to {self.owners[name]}; what is stored is left out",
                where=prefix + name,
                remedy="untie the two in the model, or leave the tensor out",
            )

    def restore(self, module: nn.Module) -> None:
        """Make one tensor of each group again, after its owner's was loaded."""
        for head in self.heads:
            if head.table is not None:
                head.share(head.table)
                head.take_bias()
        for name, owner in self.owners.items():
            _place(module, name, _find(module, owner))


def find_sharing(module: nn.Module, layers: Mapping[str, Layer], prefix: str, stored: Iterable[str]) -> Sharing:
    """Group a module's tensors by identity; of a group's names the one that is a layer's, or stored, owns it."""
    names = set(stored)
    groups: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    below = tuple(f"{name}." if name else "" for name in layers)
    owners: dict[str, str] = {}
    for group in groups.values():
        owner = min(group, key=lambda name: (not name.startswith(below), prefix + name not in names))
        owners |= {name: owner for name in group if name != owner and not name.startswith(below)}
    heads = (child for child in module.modules() if isinstance(child, ParallelLMHead) and child.table is not None)
    return Sharing(owners, tuple(heads))


def _find(module: nn.Module, name: str) -> Tensor | None:
    parent, _, leaf = name.rpartition(".")
    found: Tensor | None = getattr(module.get_submodule(parent), leaf, None)
    return found


def _place(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Put a tensor in a parameter's place; one that its layer has no more, because a hook derived others, goes."""
    parent, _, leaf = name.rpartition(".")
    place = module.get_submodule(parent)
    if isinstance(place, Layer):
        return
    tensors = place._buffers if leaf in place._buffers else place._parameters
    tensors[leaf] = tensor  # type: ignore[assignment]
