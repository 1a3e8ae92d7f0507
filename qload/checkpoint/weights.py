"""Which files hold the weights, and what their headers say together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from qload.checkpoint.documents import read_json
from qload.checkpoint.header import TensorEntry, read_header
from qload.checkpoint.storage import Storage
from qload.findings import Finding, report

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files to read and, from the index, the file that each tensor is to come from."""

    files: tuple[str, ...] = ()
    placed: Mapping[str, str] | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(slots=True)
class Stored:
    """What the headers of all files say together; `broken` files have none that can be read."""

    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    metadata: dict[str, Mapping[str, str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def lost(self, weights: Weights) -> frozenset[str]:
        """The tensors that the index places in files that cannot be read."""
        readable = self.metadata.keys() - self.broken
        return frozenset(name for name, file in (weights.placed or {}).items() if file not in readable)


def find_weights(storage: Storage) -> Weights:
    """Choose the weight files of a checkpoint, as transformers does: the single one before the indexed ones."""
    files = storage.names
    if SINGLE in files:
        return Weights((SINGLE,))
    if INDEX in files:
        return _read_index(storage)
    shards = tuple(name for name in files if name.startswith("model-") and name.endswith(".safetensors"))
    if not shards:
        return Weights()
    finding = report("QL007", "there are several weight files and no index", file=INDEX, found=f"{len(shards)} files")
    return Weights(shards, None, (finding,))


def _read_index(storage: Storage) -> Weights:
    table, fault = read_json(storage, INDEX)
    if fault is not None:
        return Weights(findings=(fault,))
    placed = (table or {}).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        return Weights(findings=(report("QL105", "has no weight_map of tensors to files", file=INDEX),))
    files, named = set(storage.names), sorted(set(placed.values()))
    missing = tuple(_missing_file(name, placed) for name in named if name not in files)
    return Weights(tuple(name for name in named if name in files), placed, missing)


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


def read_headers(storage: Storage, weights: Weights) -> Stored:
    """Read every weight file's header, and hold them against the index and each other."""
    stored = Stored()
    for name in weights.files:
        header = read_header(storage, name)
        stored.metadata[name] = header.metadata
        stored.findings.extend(header.findings)
        if not header.tensors and header.findings:
            stored.broken.add(name)
        placed = weights.placed or {}
        stored.findings.extend(_duplicates(stored.tensors, header.tensors, placed))
        # A copy that the index takes from another file is stale.
        stored.tensors.update({key: entry for key, entry in header.tensors.items() if placed.get(key, name) == name})
    if weights.placed is not None:
        stored.findings.extend(_check_index(weights.placed, stored))
    return stored


def _duplicates(
    seen: Mapping[str, TensorEntry], new: Mapping[str, TensorEntry], placed: Mapping[str, str]
) -> Iterator[Finding]:
    for key in sorted(key for key in seen.keys() & new.keys() if key not in placed):
        yield report(
            "QL008",
            "is stored twice, and no index decides",
            where=key,
            file=new[key].file,
            found=f"also in {seen[key].file}",
        )


def _check_index(placed: Mapping[str, str], stored: Stored) -> Iterator[Finding]:
    readable = stored.metadata.keys() - stored.broken
    for key in sorted(placed.keys() - stored.tensors.keys()):
        if placed[key] in readable:
            yield report(
                "QL006",
                "the index places it in a file that does not hold it",
                where=key,
                file=placed[key],
                remedy="rebuild the index, or download the file again",
            )
    for key in sorted(stored.tensors.keys() - placed.keys()):
        yield report("QL007", "is stored, and the index does not name it", where=key, file=stored.tensors[key].file)
