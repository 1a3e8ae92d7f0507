"""The index of several weight files: which file each tensor is to come from."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import Any

import msgspec

from qload.checkpoint.documents import MAX_JSON_BYTES, read_json
from qload.checkpoint.storage import Storage
from qload.findings import Finding, report

INDEX = "model.safetensors.index.json"
MAP = "weight_map"


@dataclass(frozen=True, slots=True)
class Index:
    """What an index says: the file of each tensor, the bytes of all tensors if it says so, and what is wrong with it.

    `present` are the files that it names and that are there, `placed` is None where it has no map of tensors.
    """

    placed: Mapping[str, str] | None = None
    present: tuple[str, ...] = ()
    total: int | None = None
    findings: tuple[Finding, ...] = ()


def read_index(storage: Storage) -> Index:
    """Read the index of a checkpoint that has one; whatever is wrong is a finding.

    As transformers does it, a file in a folder below is read, and none outside of the folder.
    """
    sound = _read_sound(storage)
    if sound is not None:
        present, missing = _find_files(storage, sound.weight_map)
        return Index(sound.weight_map, present, _find_total(sound.metadata), missing)
    table, fault = read_json(storage, INDEX)
    faults = (fault,) if fault is not None else ()
    if table is None:
        return Index(findings=faults)
    placed = table.get(MAP)
    named = {name: file for name, file in placed.items() if isinstance(file, str)} if isinstance(placed, dict) else {}
    if not isinstance(placed, dict) or not named:
        fault = report("QL105", f"has no {MAP} of tensors to files", file=INDEX, pointer=(MAP,))
        return Index(findings=(*faults, fault))
    present, missing = _find_files(storage, named)
    findings = (*faults, *_refuse_others(placed), *missing)
    return Index(named, present, _find_total(table.get("metadata")), findings)


def _refuse_others(placed: Mapping[str, object]) -> Iterator[Finding]:
    for name, file in placed.items():
        if not isinstance(file, str):
            yield report(
                "QL105",
                "the index places it in something that is no file's name",
                where=name,
                file=INDEX,
                expected="a string",
                found=repr(file)[:80],
                remedy="rebuild the index",
                pointer=(MAP, name),
            )


class _Table(msgspec.Struct):
    """What an index is, where nothing is wrong with it."""

    weight_map: dict[str, str]
    metadata: Any = None


_TABLE = msgspec.json.Decoder(_Table)


def _read_sound(storage: Storage) -> _Table | None:
    """An index that is as it should be; None for any other, without the reason."""
    try:
        size = storage.size(INDEX)
        raw = storage.read(INDEX, 0, size) if size <= MAX_JSON_BYTES else b""
        table = _TABLE.decode(raw)
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return None
    # What is written twice is read once: then there are more quotation marks than in what was read.
    rest = msgspec.json.encode({MAP: {}, "metadata": table.metadata})
    marks = rest.count(b'"') + 4 * len(table.weight_map)
    return table if table.weight_map and raw.count(b'"') == marks else None


def _find_total(metadata: object) -> int | None:
    """The bytes of all tensors; tools that leave them out, or do not know them, write nothing, 0, or a float."""
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return total if type(total) is int and total > 0 else None


def _find_files(storage: Storage, placed: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    """The files that are there, and the findings of those that are not."""
    counts = Counter(placed.values())
    faults = {file: fault for file in sorted(counts) if (fault := _find_fault(storage, file))}
    missing = tuple(
        report(
            "QL005",
            f"the index names a file that {fault}",
            file=file,
            expected=f"{counts[file]} tensor{'s' if counts[file] > 1 else ''} in it",
            remedy="download it, or rebuild the index",
        )
        for file, fault in faults.items()
    )
    return tuple(file for file in sorted(counts) if file not in faults), missing


def _find_fault(storage: Storage, file: str) -> str:
    """Why the index may not name a file; nothing where it may."""
    if file in storage.names:
        return ""
    if not file.isprintable():
        return "no folder has"
    parts = PurePosixPath(file).parts
    if ".." in parts or PurePosixPath(file).is_absolute() or PurePath(file).is_absolute():
        return "is not inside the folder"
    return "" if len(parts) > 1 and _is_there(storage, file) else "is not there"


def _is_there(storage: Storage, file: str) -> bool:
    try:
        storage.size(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
