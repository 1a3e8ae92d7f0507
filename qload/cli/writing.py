"""Files that a command writes."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from qload.errors import QloadError


def write_file(path: Path, text: str) -> None:
    """Write a file as a whole or not at all; into what is no file, as a device or a pipe, as it stands.

    Of a link, what it points at is written. Raises QloadError.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            _replace(Path(os.path.realpath(path)), text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise QloadError(f"the file cannot be written: {reason}", where=str(path)) from error


def _replace(path: Path, text: str) -> None:
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_read_umask())
        Path(temporary).replace(path)
    except (OSError, ValueError):
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
