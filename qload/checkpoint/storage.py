"""Where the files of a checkpoint lie: in a folder, or wherever else somebody can list them and read ranges."""

import errno
import os
import stat
from pathlib import Path
from typing import Protocol

from qload.errors import QloadError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Storage(Protocol):
    """The files of a checkpoint, by their names, which may not be what they say."""

    @property
    def place(self) -> str:
        """What a user calls it: a path, or a repository with its revision."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files, sorted."""

    def size(self, name: str) -> int:
        """The bytes of a file. Raises OSError where that cannot be told, FileNotFoundError where there is none."""

    def read(self, name: str, start: int, count: int) -> bytes:
        """`count` bytes of a file from `start` on, fewer only where the file ends. Raises OSError."""


class Folder:
    """A folder of this machine. Raises QloadError if there is no such folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = list_files(path)

    @property
    def place(self) -> str:
        return str(self.path)

    def size(self, name: str) -> int:
        """The bytes of a file, which a link may lead to. A pipe or device is refused: opening one can wait forever."""
        path = self.path / name
        try:
            status = path.stat()
        except FileNotFoundError as error:
            if not path.is_symlink():
                raise
            raise FileNotFoundError(error.errno, f"it is a link to {path.readlink()}, which is not there") from error
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
            raise OSError(errno.EINVAL, f"it is {kind}, not a file")
        return status.st_size

    def read(self, name: str, start: int, count: int) -> bytes:
        with (self.path / name).open("rb", buffering=0) as file:
            return _read_all(file.fileno(), start, count)


def _read_all(file: int, start: int, count: int) -> bytes:
    """A call may give less than was asked for where the file goes on."""
    first = os.pread(file, count, start)
    pieces, wanted = [first], count - len(first)
    while wanted > 0 and (piece := os.pread(file, wanted, start + count - wanted)):
        pieces.append(piece)
        wanted -= len(piece)
    return b"".join(pieces)


def _tell_absence(error: OSError | ValueError) -> str:
    match error:
        case FileNotFoundError():
            return "there is no such folder"
        case NotADirectoryError():
            return "is no folder, nor a file of a checkpoint"
        case OSError(strerror=str(reason)):
            return f"the folder cannot be read: {reason}"
        case _:
            return f"the folder cannot be read: {error}"


def list_files(path: Path) -> tuple[str, ...]:
    """The names of what lies in a checkpoint's folder. Raises QloadError if there is no such folder."""
    try:
        return tuple(sorted(entry.name for entry in path.iterdir()))
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        raise QloadError(
            _tell_absence(error),
            where=str(path),
            expected="a folder with config.json and safetensors files",
            remedy="give the folder that the checkpoint was downloaded into",
        ) from error
