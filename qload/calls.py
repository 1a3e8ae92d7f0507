"""The one way in which the core calls a plugin: a sound answer, or an error that says whose fault it is."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qload.answers import MEANT, READERS, AnswerError, Reader
from qload.errors import PluginError, QloadError
from qload.hooks import Hook


class PluginWarning(UserWarning):
    """A plugin that is set aside, or passed over, because it is broken."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a method comes from: an entry point of a distribution, by name and version."""

    method: str
    target: str
    distribution: str
    version: str
    load: Callable[[], object] = field(repr=False, compare=False)

    def blame(self, *faults: str, where: str = "") -> PluginError:
        """The error that lists the plugin's faults, and says whom to tell."""
        distribution = f"{self.distribution} {self.version}".strip()
        remedy = f"report it to {distribution} ({self.target}), or do without: QLOAD_DISABLE={self.method}"
        return PluginError(self.method, faults, where, remedy)


@dataclass(frozen=True, slots=True)
class BoundHook:
    """A hook of one plugin, to be called as a function that never raises what only its author understands."""

    origin: Origin
    name: str
    function: Hook

    def __call__(self, *arguments: Any, where: str = "") -> Any:
        """The hook's answer, read. Raises PluginError, besides what the hook is meant to raise."""
        return call(self.origin, self.name, self.function, *arguments, where=where)


def call(
    origin: Origin,
    name: str,
    function: Callable[..., Any],
    *arguments: Any,
    where: str = "",
    read: Reader | None = None,
    meant: tuple[type[Exception], ...] = (),
) -> Any:
    """Call a plugin's code, and read its answer: by `read`, or by the reader of the hook of that name.

    qload's own errors, running out of memory, and what is `meant` pass. Raises PluginError, with the hook, for
    everything else that is raised, and for answers that the core cannot work with.
    """
    read = read or READERS.get(name)
    passing: tuple[type[Exception], ...] = (QloadError, MemoryError, *MEANT.get(name, ()), *meant)
    try:
        answer = function(*arguments)
        return answer if read is None else read(answer)
    except passing:
        raise
    except AnswerError as error:
        raise origin.blame(f"{name} {error}", where=where) from error
    except (Exception, SystemExit) as error:
        raise origin.blame(f"{name} raises {type(error).__name__}: {error}", where=where) from error


def ask(hook: BoundHook, *arguments: Any) -> Any:
    """The answer of one plugin of many, or None, with a PluginWarning, from one that is broken."""
    try:
        return hook(*arguments)
    except PluginError as error:
        warnings.warn(f"passed over: {error}", PluginWarning, stacklevel=3)
        return None
