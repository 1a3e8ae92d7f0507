"""Writes changed files so that each is there as it was, or as it is to be, and never in part."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from qload.errors import QloadError
from qload.repair.repairs import Repair


def apply(repairs: Iterable[Repair]) -> None:
    """Make the changes: all of them are written beside the files and to the disk before the first takes a file's place.

    A link is not followed nor replaced, and the cache of a hub's client is left alone, for other checkpoints share
    its files. Raises QloadError where a change is refused, where the file is no longer what it was when the change
    was planned, or where it cannot be written; the file is then as it was, and nothing else is left.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for repair in repairs:
            _check(repair)
            staged.append((_stage(repair), repair.file))
        for written, file in staged:
            written.replace(file)
            _flush_folder(file.parent)
    except OSError as error:
        raise QloadError(f"cannot be written: {error.strerror or error}", where=str(error.filename or "")) from error
    finally:
        for written, _ in staged:
            written.unlink(missing_ok=True)


def _check(repair: Repair) -> None:
    file, copy = repair.file, "copy the checkpoint to a folder of its own, and mend the copy"
    if file.is_symlink():
        raise QloadError(f"is a link to {file.readlink()}, and is not changed", where=str(file), remedy=copy)
    if _is_cache(file.parent):
        raise QloadError("lies in a cache, and is not changed", where=str(file), remedy=copy)
    current = file.read_bytes() if file.exists() else None
    if current != repair.before:
        raise QloadError("has changed since the repair was planned", where=str(file), remedy="plan it again")


def _is_cache(folder: Path) -> bool:
    """Whether a folder is a snapshot. Source: huggingface_hub's guide to its cache, snapshots beside blobs."""
    snapshots = folder.resolve().parent
    return snapshots.name == "snapshots" and (snapshots.parent / "blobs").is_dir()


def _stage(repair: Repair) -> Path:
    """Write the new content into a file of its own in the same folder, down to the disk."""
    path = repair.file.with_name(f".{repair.file.name}.{secrets.token_hex(8)}")
    try:
        with path.open("xb") as stream:
            if repair.before is not None:
                path.chmod(stat.S_IMODE(repair.file.stat().st_mode))
            stream.write(repair.after)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _flush_folder(folder: Path) -> None:
    """See to it that the folder's new entry is on the disk; some file systems have no such thing."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
