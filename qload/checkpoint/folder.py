"""A folder in Hugging Face layout: config.json, one weight file or several with an index."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from qload.checkpoint.header import TensorEntry, read_header
from qload.checkpoint.names import group_names
from qload.errors import QloadError
from qload.findings import Finding, report

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 256_000_000

_PICKLED = (".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint without its data: config, the entry of every stored tensor, and what is wrong so far.

    `files` are the folder's names. `pickled` are weight files that only unpickling can read.
    `metadata` is that of the weight files, by file.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    files: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    pickled: tuple[str, ...] = ()
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A side file's object, or None where the folder lacks it or it is no JSON object."""
        if name not in self.files:
            return None
        value, _ = read_json(self.path / name, name)
        return value

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def modules(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the tensors stored below each module."""
        return group_names(self.tensors)


def open_folder(path: Path) -> Checkpoint:
    """Read a folder's config, index and headers.

    Raises QloadError if there is no such folder; everything else that is wrong is a finding.
    """
    files = _list_files(path)
    findings: list[Finding] = []
    config, fault = read_json(path / "config.json", "config.json")
    if fault is not None:
        findings.append(fault)
    names, placed = _weight_files(path, files, findings)
    tensors, metadata = _merge(path, names, placed, findings)
    pickled = () if names else tuple(name for name in files if name.endswith(_PICKLED))
    findings.extend(_check_presence(names, pickled))
    return Checkpoint(path, config or {}, tensors, files, tuple(findings), pickled, metadata)


def read_json(path: Path, name: str) -> tuple[dict[str, Any] | None, Finding | None]:
    """The JSON object in a file, or the finding that says why there is none."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            return None, report("QL105", "is too large for a config", file=name, found=f"{size} bytes")
        value = json.loads(path.read_bytes())
    except OSError as error:
        return None, report("QL105", f"cannot be read: {error.strerror}", file=name)
    except (ValueError, RecursionError) as error:
        return None, report("QL105", f"is not JSON: {error}", file=name)
    if not isinstance(value, dict):
        return None, report("QL105", "is not a JSON object", file=name, found=type(value).__name__)
    return value, None


def _list_files(path: Path) -> tuple[str, ...]:
    if not path.is_dir():
        raise QloadError(
            "there is no such folder",
            where=str(path),
            expected="a folder with config.json and safetensors files",
            remedy="give the folder that the checkpoint was downloaded into",
        )
    return tuple(sorted(entry.name for entry in path.iterdir()))


def _weight_files(
    path: Path, files: tuple[str, ...], findings: list[Finding]
) -> tuple[list[str], Mapping[str, str] | None]:
    """The weight files to read and, from the index, the file that each tensor is to come from."""
    if SINGLE in files:
        return [SINGLE], None
    if INDEX in files:
        return _indexed_files(path, files, findings)
    shards = [name for name in files if name.startswith("model-") and name.endswith(".safetensors")]
    if shards:
        findings.append(
            report(
                "QL007",
                "there are several weight files and no index",
                file=INDEX,
                found=f"{len(shards)} files",
            )
        )
    return shards, None


def _indexed_files(
    path: Path, files: tuple[str, ...], findings: list[Finding]
) -> tuple[list[str], Mapping[str, str] | None]:
    table, fault = read_json(path / INDEX, INDEX)
    if fault is not None:
        findings.append(fault)
    placed = (table or {}).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        findings.append(report("QL105", "has no weight_map of tensors to files", file=INDEX))
        return [], None
    named = sorted(set(placed.values()))
    present = [name for name in named if name in files]
    findings.extend(_missing_file(name, placed) for name in named if name not in files)
    return present, {tensor: name for tensor, name in placed.items() if name in files}


def _missing_file(name: str, placed: Mapping[str, str]) -> Finding:
    count = sum(file == name for file in placed.values())
    inside = PurePosixPath(name).name == name
    return report(
        "QL005",
        f"the index names a file that is not {'there' if inside else 'inside the folder'}",
        file=name,
        expected=f"{count} tensors in it",
        remedy="download it, or rebuild the index",
    )


def _merge(
    path: Path, names: list[str], placed: Mapping[str, str] | None, findings: list[Finding]
) -> tuple[dict[str, TensorEntry], dict[str, Mapping[str, str]]]:
    tensors: dict[str, TensorEntry] = {}
    metadata: dict[str, Mapping[str, str]] = {}
    broken: set[str] = set()
    for name in names:
        header = read_header(path / name, name)
        metadata[name] = header.metadata
        findings.extend(header.findings)
        if not header.tensors and header.findings:
            broken.add(name)
        findings.extend(_duplicates(tensors, header.tensors, placed))
        chosen = header.tensors if placed is None else _chosen(header.tensors, placed, name)
        tensors.update(chosen)
    if placed is not None:
        findings.extend(_check_index(placed, tensors, broken))
    return tensors, metadata


def _chosen(stored: Mapping[str, TensorEntry], placed: Mapping[str, str], name: str) -> dict[str, TensorEntry]:
    """The tensors of one file, without those that the index takes from another."""
    return {key: entry for key, entry in stored.items() if placed.get(key, name) == name}


def _duplicates(
    seen: Mapping[str, TensorEntry], new: Mapping[str, TensorEntry], placed: Mapping[str, str] | None
) -> Iterator[Finding]:
    for key in sorted(seen.keys() & new.keys()):
        if placed is None or key not in placed:
            yield report(
                "QL008",
                "is stored twice, and no index decides",
                where=key,
                file=new[key].file,
                found=f"also in {seen[key].file}",
            )


def _check_index(
    placed: Mapping[str, str], tensors: Mapping[str, TensorEntry], broken: set[str]
) -> Iterator[Finding]:
    for key in sorted(placed.keys() - tensors.keys()):
        if placed[key] not in broken:
            yield report(
                "QL006",
                "the index places it in a file that does not hold it",
                where=key,
                file=placed[key],
                remedy="rebuild the index, or download the file again",
            )
    for key in sorted(tensors.keys() - placed.keys()):
        yield report("QL007", "is stored, and the index does not name it", where=key, file=tensors[key].file)


def _check_presence(names: list[str], pickled: tuple[str, ...]) -> Iterator[Finding]:
    if names:
        return
    if pickled:
        yield report(
            "QL001",
            "the weights are pickled, and unpickling can run code",
            file=pickled[0],
            remedy="convert them to safetensors, or load with allow_pickle=True",
        )
    else:
        yield report("QL011", "there are no weights", expected=f"{SINGLE}, or {INDEX} and its files")
