"""The table of kernels, and the choice of one for each piece of a layer."""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from qload.calls import Origin, call
from qload.errors import QloadError
from qload.registry import Method, Registry
from qload.torch.kernels.dense import Strips
from qload.torch.kernels.float4 import Float4, PowerFloat4, PowerFloat8
from qload.torch.kernels.float8 import BlockFloat8, Float8
from qload.torch.kernels.int4_cpu import CpuInt4
from qload.torch.kernels.int4_cuda import CudaInt4
from qload.torch.kernels.int8_cpu import CpuInt8
from qload.torch.kernels.int8_dynamic import Int8Dynamic
from qload.torch.kernels.kernel import Case, Kernel, Kernels
from qload.torch.kernels.trials import Trials
from qload.torch.kernels.upcast import Upcast, UpcastStrips
from qload.torch.kernels.weights import Weight

BUILT_IN: Kernels = (
    *(CpuInt4, CudaInt4, Int8Dynamic, CpuInt8),
    *(Float8, BlockFloat8, Float4, PowerFloat8, PowerFloat4, Upcast, UpcastStrips, Strips),
)
"""In the order in which they are preferred."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernel for a weight; None, or one that is not fast, and why."""

    kernel: type[Kernel] | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """The kernels that a load may choose from, in the order of preference, and how they fared when they were tried."""

    kernels: Kernels = ()
    trials: Trials = field(default_factory=Trials, compare=False, repr=False)

    def choose(self, weight: Weight, case: Case) -> Choice:
        """As `choose_kernel`, of those that compute what they should: each is tried before it is chosen."""
        return choose_kernel(self.kernels, weight, case, self.trials)


def choose_kernel(kernels: Iterable[type[Kernel]], weight: Weight, case: Case, trials: Trials | None = None) -> Choice:
    """The first of the kernels that can multiply by such a weight; else why those made for it cannot."""
    reasons: list[str] = []
    for kernel in kernels:
        seen = kernel.see(weight)
        if kernel.serves(seen, case):
            reason = _refuse_further(kernel, weight) or kernel.refuse(seen, case)
            if reason is None and trials is not None:
                reason = trials.refuse(kernel, weight, case)
            if reason is None:
                return Choice(kernel, "" if kernel.is_fast else _explain(reasons, weight, case))
            reasons.append(f"{kernel.label}: {reason}")
    return Choice(None, _explain(reasons, weight, case))


def _explain(reasons: Sequence[str], weight: Weight, case: Case) -> str:
    return "; ".join(reasons) or f"no kernel multiplies by {weight.label} on {case.device.type}"


def _refuse_further(kernel: type[Kernel], weight: Weight) -> str | None:
    unknown = sorted(weight.further - kernel.knows)
    return f"it knows no {', '.join(unknown)} of a weight" if unknown else None


def find_kernels(registry: Registry, method: Method, names: Sequence[str] | None = None) -> Table:
    """The kernels that a method and the plugins add, and then the built-in ones; with `names`, these alone.

    Raises QloadError for a name that none has, and PluginError for a plugin's kernel that is none.
    """
    kernels = (*_load_added(registry, method), *BUILT_IN)
    if names is None:
        return Table(kernels)
    known = {kernel.label: kernel for kernel in kernels}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise QloadError(
            "there is no kernel of that name",
            found=", ".join(map(repr, unknown)),
            expected=", ".join(known) or "none",
            remedy="name some of these, or none to compute with dequantized weights",
        )
    return Table(tuple(kernel for kernel in kernels if kernel.label in names))


def _load_added(registry: Registry, method: Method) -> Iterator[type[Kernel]]:
    for origin, target in registry.kernels(method):
        yield call(origin, f"qload_kernels names {target}, which", _load, origin, target)


def _load(origin: Origin, target: str) -> type[Kernel]:
    module, _, name = target.partition(":")
    found = getattr(importlib.import_module(module), name)
    if not isinstance(found, type) or not issubclass(found, Kernel):
        raise origin.blame(f"qload_kernels names {target}, which is no qload.torch.kernels.Kernel")
    return found
