"""Rebuilds the index of several weight files from their headers."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from qload.checkpoint import Folder, TensorEntry, read_header
from qload.checkpoint.documents import read_json
from qload.checkpoint.index import INDEX, MAP, Index, read_index
from qload.checkpoint.sets import MAX_COUNT, SINGLE, SUFFIX, find_numbered
from qload.checkpoint.totals import find_wrong_total
from qload.repair.repairs import Repair, find_indent

Tensors = Mapping[str, TensorEntry]
_METADATA, _TOTAL = "metadata", "total_size"
_INDENT = "  "
"""As huggingface_hub writes an index."""


def plan_index(folder: Folder) -> Repair | None:
    """The index that the headers give, where the one that is there is wrong or none is there.

    None where it is right, and where that cannot be told: a file is unsound or missing, a tensor is stored twice, or
    one that the index names is nowhere, for then the index is the only trace of it.
    """
    before = _read(folder)
    if INDEX in folder.names and before is None:
        return None
    index = read_index(folder) if before is not None else Index()
    table = (read_json(folder, INDEX)[0] or {}) if before is not None else {}
    wanted = table[MAP].keys() if isinstance(table.get(MAP), dict) else ()
    tensors = _find_tensors(folder, index, wanted)
    if not tensors or _is_right(folder, index, tensors):
        return None
    return Repair(folder.path / INDEX, "rebuild the index from the headers", before, _write(table, tensors, before))


def _read(folder: Folder) -> bytes | None:
    try:
        return folder.read(INDEX, 0, folder.size(INDEX)) if INDEX in folder.names else None
    except OSError:
        return None


def _find_tensors(folder: Folder, index: Index, wanted: Iterable[str]) -> Tensors | None:
    """The tensors of the files that the index is about; None where those are not sure to be all."""
    choices: list[tuple[str, ...]]
    if SINGLE in folder.names:
        # An index that names files which are there is another set of weights: which one is meant is not for us to say.
        choices = [(SINGLE,)] if index.placed is not None and not index.present else []
    elif index.placed is not None:
        choices = [index.present, tuple(sorted({*index.present, *_find_parts(folder)}))]
    else:
        choices = [_find_complete_set(folder)]
    for files in choices:
        tensors = _read_tensors(folder, files)
        if tensors is not None and tensors.keys() >= set(wanted):
            return tensors
    return None


def _find_parts(folder: Folder) -> tuple[str, ...]:
    return tuple(name for name in folder.names if name.startswith("model-") and name.endswith(SUFFIX))


def _find_complete_set(folder: Folder) -> tuple[str, ...]:
    """The numbered files, where they are all of one set and nothing like them lies beside."""
    files = _find_parts(folder)
    sets = find_numbered(files)
    if len(sets) != 1 or len(sets[0].files) != len(files):
        return ()
    return () if sets[0].missing() or int(sets[0].count) > MAX_COUNT else files


def _read_tensors(folder: Folder, files: Iterable[str]) -> Tensors | None:
    """The tensors of files that are all sound and hold no tensor twice."""
    tensors: dict[str, TensorEntry] = {}
    for name in files:
        header = read_header(folder, name)
        if header.findings or header.tensors.keys() & tensors.keys():
            return None
        tensors.update(header.tensors)
    return tensors


def _is_right(folder: Folder, index: Index, tensors: Tensors) -> bool:
    if index.findings or index.placed != {name: entry.file for name, entry in tensors.items()}:
        return False
    return index.total is None or not list(find_wrong_total(folder, index.total, tensors, index.present))


def _write(table: Mapping[str, Any], tensors: Tensors, before: bytes | None) -> bytes:
    """The index with what else it says, in the form that it has."""
    metadata = table[_METADATA] if isinstance(table.get(_METADATA), dict) else {}
    total = sum(entry.nbytes for entry in tensors.values())
    placed = {name: tensors[name].file for name in sorted(tensors)}
    indent = find_indent(before.decode(errors="replace")) if before is not None and table else _INDENT
    rebuilt = {**table, _METADATA: {**metadata, _TOTAL: total}, MAP: placed}
    end = "\n" if before is None or before.endswith(b"\n") else ""
    return (json.dumps(rebuilt, indent=indent) + end).encode()
