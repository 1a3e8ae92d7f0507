"""Where a layer stands: its name in the checkpoint, whose shard it is, and what it computes in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from qload.errors import CheckpointError
from qload.findings import Finding, report
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.plan import Source
from qload.quantization import Quantization, Treatment
from qload.torch.parallel import Group


@dataclass(frozen=True, slots=True)
class Site:
    """What all layers of a model share, and the name below which one stands.

    `group` has the ranks among which layers are divided, and says whose shard they are to be; `dtype` is what they
    compute in.
    """

    quantization: Quantization
    name: str = ""
    group: Group = Group()  # noqa: RUF009
    dtype: torch.dtype = torch.float32

    def at(self, name: str) -> "Site":
        """The site of that name below this one."""
        return replace(self, name=f"{self.name}.{name}" if self.name else name)

    @property
    def alone(self) -> "Site":
        """The same site for a layer that every rank has whole."""
        return replace(self, group=Group())

    @property
    def parent(self) -> "Site":
        return replace(self, name=self.name.rpartition(".")[0])

    def treat(self, sources: Sequence[Source], kind: Kind, classes: tuple[str, ...]) -> Treatment:
        """What is done to all of a layer's sources. Raises CheckpointError where they differ."""
        treatments = [self.quantization.treat(ModuleInfo((source.prefix,), kind, classes)) for source in sources]
        if any(each.scheme != treatments[0].scheme for each in treatments):
            raise CheckpointError(self.name, [_mixed(self.name, sources, treatments)])
        return treatments[0]


def _mixed(name: str, sources: Sequence[Source], treatments: Sequence[Treatment]) -> Finding:
    labels = [f"{source.prefix} {each.label}" for source, each in zip(sources, treatments, strict=True)]
    return report(
        "QL204",
        "the parts of one layer are quantized differently",
        where=name,
        found=", ".join(labels),
        remedy="build this layer from separate ones",
    )
