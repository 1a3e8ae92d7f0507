"""A bar of bytes on the terminal. Imports rich, which takes a while: whoever shows no bar imports it not."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class ByteBar:
    """How many bytes are done of how many, how many a second, and how long it will take; gone when it is left."""

    def __init__(self, label: str) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(label, total=None)

    def __enter__(self) -> "ByteBar":
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def show(self, done: int, total: int) -> None:
        """Show that so many bytes are done."""
        self._bar.update(self._task, completed=done, total=total)
