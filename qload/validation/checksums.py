"""The checksums that were published of a checkpoint's files, wherever they lie beside them.

Sources: huggingface_hub, `file_download.py` for its cache, where a snapshot's files are links to blobs that are named
by their sha256, or by git's sha1 where git holds them itself; `_local_folder.py` for what it keeps of a download into
a folder; coreutils for lists of sums.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from qload.checkpoint import Folder, Storage
from qload.validation.pieces import Digest

_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_LISTS = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "sha256sum.txt")
_LINE = re.compile(r"\\?(?P<value>[0-9a-fA-F]{64})(?: [ *](?:\./)?(?P<name>.+))?")
_MOST = 1 << 22
"""More bytes than a list of sums has."""
_SECOND = 1
"""A file's time may be so much later than the one at which it was written down."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a file's checksum should be, and who says so."""

    value: str
    origin: str

    @property
    def algorithm(self) -> str:
        return "sha256" if _SHA256.fullmatch(self.value) else "git's sha1"

    def start(self, size: int) -> Digest:
        """What all bytes of a file of that size are to be put into."""
        if self.algorithm == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


@runtime_checkable
class Publishing(Protocol):
    """A storage that knows the sha256 of its files."""

    @property
    def checksums(self) -> Mapping[str, str]:
        """By the files' names, as far as they are known."""


def read_checksums(storage: Storage, files: Iterable[str]) -> dict[str, Checksum]:
    """What was published of the files, by their names; the first who says it is believed."""
    found: dict[str, Checksum] = {}
    if isinstance(storage, Publishing):
        said = {file: storage.checksums.get(file, "") for file in files}
        found = {file: Checksum(value, storage.place) for file, value in said.items() if _SHA256.fullmatch(value)}
    lists = _read_lists(storage)
    for file in files:
        own = None if file in found else (lists.get(file) or _read_one(storage, file) or _read_cache(storage, file))
        if own is not None:
            found[file] = own
    return found


def _read_lists(storage: Storage) -> dict[str, Checksum]:
    found: dict[str, Checksum] = {}
    for name in _LISTS:
        if name in storage.names:
            found = _read_sums(storage, name) | found
    return found


def _read_one(storage: Storage, file: str) -> Checksum | None:
    name = f"{file}.sha256"
    if name not in storage.names:
        return None
    sums = _read_sums(storage, name)
    return sums.get(file) or sums.get("")


def _read_sums(storage: Storage, name: str) -> dict[str, Checksum]:
    """The sums of a list, by the names in it; of a sum without one, by nothing."""
    try:
        lines = storage.read(name, 0, _MOST).decode("utf-8", "replace").splitlines()
    except OSError:
        return {}
    matches = (_LINE.fullmatch(line.rstrip()) for line in lines)
    return {match["name"] or "": Checksum(match["value"].lower(), name) for match in matches if match is not None}


def _read_cache(storage: Storage, file: str) -> Checksum | None:
    """What huggingface_hub has kept of the file, in its cache or beside it."""
    if not isinstance(storage, Folder):
        return None
    path = storage.path / file
    return _read_blob(path) or _read_download(path)


def _read_blob(path: Path) -> Checksum | None:
    """The name of the blob that a snapshot's file is a link to."""
    if not path.is_symlink() or path.absolute().parent.parent.name != "snapshots":
        return None
    blob = path.readlink()
    is_sum = blob.parent.name == "blobs" and (_SHA256.fullmatch(blob.name) or _SHA1.fullmatch(blob.name))
    return Checksum(blob.name, "the name of its blob") if is_sum else None


def _read_download(path: Path) -> Checksum | None:
    """What was written down when the file was downloaded, if it has not been changed since."""
    kept = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    try:
        lines = kept.read_text().split()
        later = path.stat().st_mtime - _SECOND > float(lines[2])
    except (OSError, ValueError, IndexError):
        return None
    is_sum = not later and (_SHA256.fullmatch(lines[1]) or _SHA1.fullmatch(lines[1]))
    return Checksum(lines[1], "the metadata of its download") if is_sum else None
