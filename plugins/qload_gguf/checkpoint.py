"""Reads GGUF files as a checkpoint: the config that their metadata makes, and the entry of every tensor."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qload.checkpoint import Checkpoint, Storage, TensorEntry
from qload.findings import Finding, report
from qload_gguf.entries import Translator
from qload_gguf.facts import Facts, RefusalError
from qload_gguf.header import Header, Tensor, read_header
from qload_gguf.model_config import build_config, find_architecture
from qload_gguf.rope import TABLES, Table

MAX_TABLE_BYTES = 1 << 16


def read_checkpoint(storage: Storage, file: str, names: tuple[str, ...]) -> Checkpoint:
    """The checkpoint in the files of those names; `file` is the one that was asked for, if one was.

    Whatever is wrong is a finding.
    """
    path = Path(storage.place) / file
    findings = [_missing(name) for name in names if name not in storage.names]
    headers = {} if findings else {name: read_header(storage, name) for name in names}
    findings += (finding for header in headers.values() for finding in header.findings)
    if not any(header.tensors for header in headers.values()) or not headers[names[0]].metadata:
        return Checkpoint(path, {}, {}, names, tuple(findings) or (_empty(names[0]),), storage=storage)
    findings += _check_split(headers)
    try:
        config, translated = _understand(storage, headers)
    except RefusalError as refusal:
        return Checkpoint(path, {}, {}, names, (*findings, refusal.finding), storage=storage)
    entries = {each.name: each for each in translated if isinstance(each, TensorEntry)}
    findings += (each for each in translated if isinstance(each, Finding))
    tokenizer = {"gguf_file": names[0]}
    return Checkpoint(path, config, entries, names, tuple(findings), tokenizer=tokenizer, storage=storage)


def _understand(storage: Storage, headers: Mapping[str, Header]) -> tuple[dict[str, Any], list[TensorEntry | Finding]]:
    """The model's config, and the entry of every tensor, or why it has none. Raises RefusalError."""
    name, header = next(iter(headers.items()))
    key, architecture = find_architecture(header, name)
    facts = Facts(header.metadata, key, name)
    stored = {tensor.name: tensor for each in headers.values() for tensor in each.tensors}
    config = build_config(facts, architecture, stored, header.metadata, _read_tables(storage, headers, facts))
    translated = [
        entry
        for file, each in headers.items()
        for tensor in each.tensors
        if tensor.name not in TABLES
        for entry in Translator(architecture, config, file).translate(tensor)
    ]
    return config, translated


def _read_tables(storage: Storage, headers: Mapping[str, Header], facts: Facts) -> dict[str, Table]:
    """The few tensors that are settings: a number for each rotated pair of features."""
    return {
        tensor.name: _read_table(storage, name, tensor, facts)
        for name, header in headers.items()
        for tensor in header.tensors
        if tensor.name in TABLES
    }


def _read_table(storage: Storage, name: str, tensor: Tensor, facts: Facts) -> Table:
    nbytes = tensor.stop - tensor.start
    if tensor.type != 0 or len(tensor.shape) != 1 or nbytes > MAX_TABLE_BYTES:
        raise facts.refuse(f"{tensor.name} is no table of F32", code="QL308", found=str(list(tensor.shape)))
    try:
        return struct.unpack(f"<{nbytes // 4}f", storage.read(name, tensor.start, nbytes))
    except (OSError, struct.error) as error:
        raise facts.refuse(f"{tensor.name} cannot be read ({error})", code="QL004") from error


def _check_split(headers: Mapping[str, Header]) -> Iterator[Finding]:
    """What the files of a split checkpoint say of each other."""
    seen: dict[str, str] = {}
    for name, header in headers.items():
        said: Any = header.metadata.get("split.count", len(headers))
        if said not in (0, len(headers)):
            yield report("QL005", "is one of another number of files", file=name, expected=said, found=len(headers))
        for tensor in header.tensors:
            if tensor.name in seen:
                yield report(
                    "QL008", "is stored twice", where=tensor.name, file=name, found=f"also in {seen[tensor.name]}"
                )
            seen[tensor.name] = name


def _missing(name: str) -> Finding:
    return report("QL005", "a part of the checkpoint is not there", file=name, remedy="download it, beside the others")


def _empty(name: str) -> Finding:
    return report("QL011", "holds no model", file=name, remedy="it may hold a vocabulary alone: take another file")
