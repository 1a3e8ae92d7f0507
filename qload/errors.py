"""Every exception that qload raises on purpose.

QloadError                    what, where, expected, found, remedy
├── CheckpointError           a checkpoint that cannot be used: all its findings at once
├── LayoutError               an axis that cannot be cut or read as asked: unit
│   └── ShardError            a rank's share that splits a unit: sizes that fit
├── MethodError               a quantization method that cannot be had
│   ├── UnknownMethodError    nobody registers that name: known names
│   ├── MethodConflictError   several distributions register it: distributions
│   ├── PluginError           its plugin is broken or blocked: faults
│   └── CapabilityError       it lacks the hook that a layer needs: hook
├── RuleConflictError         several plugins declare one rule: plugins
├── ModelError                a model that cannot be built or computed with
│   ├── TokenError            ids that a vocabulary does not have
│   └── ParameterError        a tensor that a parameter cannot be loaded from
└── ParallelError             ranks that cannot work together: ranks that failed
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

_SHOWN = 3
_BREAK = re.compile(r"\s*[\r\n]+\s*")


class QloadError(Exception):
    """The root of the tree; its text is one line.

    `what` went wrong, `where` (tensor, layer, file), what was `expected`, what was `found`, and
    the `remedy`. Empty fields are left out of the text.
    """

    def __init__(self, what: str, *, where: str = "", expected: str = "", found: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.remedy = remedy
        super().__init__(describe(what, where, expected, found, remedy))

    def __reduce__(self) -> tuple[Callable[..., "QloadError"], tuple[type["QloadError"], str, dict[str, Any]]]:
        """By its fields, so that a rank's error can reach the process that started the rank."""
        return _restore, (type(self), str(self), vars(self))


def _restore(kind: type[QloadError], text: str, fields: dict[str, Any]) -> QloadError:
    error = kind.__new__(kind, text)
    vars(error).update(fields)
    return error


def describe(what: str, where: str, expected: str, found: str, remedy: str) -> str:
    """One line from the five fields that errors and findings share, whatever stands in them."""
    text = f"{where}: {what}" if where else what
    facts = [f"expected {expected}"] if expected else []
    facts += [f"found {found}"] if found else []
    if facts:
        text += " (" + ", ".join(facts) + ")"
    return one_line(f"{text}; {remedy}" if remedy else text)


def one_line(text: str) -> str:
    """The text without line breaks, and with an escape for whatever a terminal would not print but obey."""
    line = _BREAK.sub(" ", text)
    return line if line.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)


class Fault(Protocol):
    """What an error needs of a finding: its code, its place, and its text as `str`."""

    @property
    def code(self) -> str: ...

    @property
    def where(self) -> str: ...


class CheckpointError(QloadError):
    """A checkpoint that cannot be used, with every finding in `findings`; its text has the first three."""

    def __init__(self, path: str, findings: Sequence[Fault]) -> None:
        self.findings = tuple(findings)
        listing = [f"{finding.code} {finding}" for finding in self.findings[:_SHOWN]]
        left = len(self.findings) - len(listing)
        listing += [f"and {left} more, in .findings"] if left else []
        super().__init__(f"{self.count}: {'; '.join(listing)}", where=path)

    @property
    def count(self) -> str:
        """How many faults there are, in words."""
        number = len(self.findings)
        return f"{number} fault{'s' if number != 1 else ''} in the checkpoint"


class LayoutError(QloadError):
    """An axis that cannot be cut or read as asked.

    `unit` is the number of logical elements that stay together; 1 where no unit is at fault.
    """

    def __init__(
        self, what: str, *, unit: int = 1, where: str = "", expected: str = "", found: str = "", remedy: str = ""
    ) -> None:
        self.unit = unit
        super().__init__(what, where=where, expected=expected, found=found, remedy=remedy)


class ShardError(LayoutError):
    """A rank's share that splits what cannot be split.

    `sizes` are the tensor-parallel sizes that would fit.
    """

    def __init__(
        self, what: str, *, where: str, unit: int, sizes: Sequence[int], expected: str = "", found: str = ""
    ) -> None:
        self.sizes = tuple(sizes)
        fitting = ", ".join(map(str, self.sizes)) or "none"
        super().__init__(
            what,
            unit=unit,
            where=where,
            expected=expected,
            found=found,
            remedy=f"tensor-parallel sizes that fit: {fitting}",
        )


class MethodError(QloadError):
    """A quantization method that cannot be had; `method` is its name."""

    def __init__(self, what: str, *, method: str, where: str = "", found: str = "", remedy: str = "") -> None:
        self.method = method
        super().__init__(what, where=where, found=found, remedy=remedy)


class UnknownMethodError(MethodError):
    """A method that no installed distribution registers; `known` are the names that are."""

    def __init__(self, method: str, known: Sequence[str], where: str = "") -> None:
        self.known = tuple(known)
        super().__init__(
            f"no installed package registers the quantization method {method!r}",
            method=method,
            where=where,
            remedy=f"install its plugin, or use one of: {', '.join(self.known) or 'none'}",
        )


class MethodConflictError(MethodError):
    """A method that several distributions register; `distributions` are their names."""

    def __init__(self, method: str, distributions: Sequence[str]) -> None:
        self.distributions = tuple(distributions)
        first = self.distributions[0]
        super().__init__(
            f"the quantization method {method!r} is registered by {' and '.join(self.distributions)}",
            method=method,
            remedy=f"choose one: prefer={{{method!r}: {first!r}}} or QLOAD_PREFER={method}={first}",
        )


class PluginError(MethodError):
    """A method whose plugin is broken or blocked; `faults` lists every reason."""

    def __init__(self, method: str, faults: Sequence[str], where: str, remedy: str) -> None:
        self.faults = tuple(faults)
        super().__init__(
            f"the plugin of {method!r} is not usable: {'; '.join(self.faults)}",
            method=method,
            where=where,
            remedy=remedy,
        )


class CapabilityError(MethodError):
    """A method that lacks the hook a layer needs; `hook` is the hook's name."""

    def __init__(self, method: str, hook: str, where: str) -> None:
        self.hook = hook
        super().__init__(
            f"the method {method!r} has no {hook} hook, which this layer needs",
            method=method,
            where=where,
            remedy=f"leave this module unquantized, or implement {hook} in the method's plugin",
        )


class RuleConflictError(QloadError):
    """A rule that several plugins declare under one code; `plugins` are their distributions and modules."""

    def __init__(self, code: str, plugins: Sequence[str]) -> None:
        self.code = code
        self.plugins = tuple(plugins)
        super().__init__(
            f"the rule {code} is declared by {' and '.join(self.plugins)}",
            remedy="block one of them with QLOAD_DISABLE, and ask its author for a prefix of its own",
        )


class ModelError(QloadError):
    """A model that cannot be built, or computed with, as asked."""


class TokenError(ModelError, IndexError):
    """Ids of tokens that a vocabulary does not have."""


class ParameterError(ModelError):
    """A tensor, or a part or expert named for it, that a parameter cannot be loaded from."""


class ParallelError(QloadError):
    """Ranks that cannot work together; `failures` has what went wrong on each rank that failed, by rank."""

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        found: str = "",
        remedy: str = "",
        failures: Mapping[int, str] | None = None,
    ) -> None:
        self.failures = dict(failures or {})
        super().__init__(what, where=where, expected=expected, found=found, remedy=remedy)


class UntoldError(ValueError):
    """What a method raises for a module where its config says too little, and the stored tensors would say the rest."""
