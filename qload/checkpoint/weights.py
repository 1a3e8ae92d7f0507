"""Which files hold the weights, and what their headers say together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from qload.catalogue import Severity
from qload.checkpoint.header import Header, TensorEntry, read_header
from qload.checkpoint.index import INDEX, Index, read_index
from qload.checkpoint.sets import SINGLE, SUFFIX, describe_files, find_missing, find_mixed_sets, find_overlaps
from qload.checkpoint.storage import Storage
from qload.checkpoint.totals import find_wrong_total
from qload.findings import Finding, report


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files to read and, from the index, the file that each tensor is to come from.

    `total` are the bytes of all tensors, where the index says them.
    """

    files: tuple[str, ...] = ()
    placed: Mapping[str, str] | None = None
    findings: tuple[Finding, ...] = ()
    total: int | None = None


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
    index = read_index(storage) if INDEX in storage.names else Index()
    if SINGLE in storage.names:
        return _take_single(storage, index)
    if index.placed is not None:
        overlaps = find_overlaps(storage.names, index.present)
        return Weights(index.present, index.placed, (*index.findings, *overlaps), index.total)
    return _take_numbered(storage, index)


def _take_single(storage: Storage, index: Index) -> Weights:
    """What the index says of other files is of no account, unless it shows that there are two sets."""
    named = set((index.placed or {}).values())
    others = index.present if SINGLE not in named else ()
    faults = index.findings if index.placed is None else ()
    stale = (_stale(index.placed),) if index.placed is not None and not index.present else ()
    beside = (_beside(others),) if others else ()
    overlaps = (*beside, *find_overlaps(set(storage.names) - named, (SINGLE,)))
    return Weights((SINGLE,), None, (*faults, *stale, *overlaps))


def _stale(placed: Mapping[str, str]) -> Finding:
    return report(
        "QL007",
        f"names files none of which is there, and {SINGLE} is",
        file=INDEX,
        found=f"{len(set(placed.values()))} files",
        remedy="delete the index, which some loaders go by",
    )


def _beside(others: tuple[str, ...]) -> Finding:
    return report(
        "QL009",
        f"{SINGLE} lies beside an index and its files, and is read in place of them",
        file=SINGLE,
        found=describe_files(others),
        remedy="delete the set that is not meant: some loaders read every file, or go by the index",
    )


def _take_numbered(storage: Storage, index: Index) -> Weights:
    """Without an index that says which, every file that is named as one of several."""
    files = tuple(name for name in storage.names if name.startswith("model-") and name.endswith(SUFFIX))
    if not files:
        return Weights(findings=index.findings)
    absent = report(
        "QL007",
        "there is no index of the weight files",
        file=INDEX,
        found=describe_files(files),
        remedy="download it, or rebuild it from the headers",
    )
    mixed, missing, overlaps = find_mixed_sets(files), find_missing(files), find_overlaps(storage.names, files)
    return Weights(files, None, (*(index.findings or (absent,)), *mixed, *missing, *overlaps))


def read_headers(storage: Storage, weights: Weights) -> Stored:
    """Read every weight file's header, and hold them against the index and each other."""
    headers = {name: read_header(storage, name) for name in weights.files}
    stored = Stored(metadata={name: header.metadata for name, header in headers.items()})
    for name, header in headers.items():
        stored.findings.extend((*header.findings, *_check_metadata(header.metadata, name)))
        stored.tensors.update(header.tensors)
        if not header.tensors and header.findings:
            stored.broken.add(name)
    count = sum(len(header.tensors) for header in headers.values())
    if count != len(stored.tensors) or not _is_exact(weights.placed, stored.tensors):
        _settle(headers, weights.placed, stored)
    if weights.placed is not None:
        stored.findings.extend(_check_total(storage, weights, stored))
    return stored


def _is_exact(placed: Mapping[str, str] | None, tensors: Mapping[str, TensorEntry]) -> bool:
    """Whether the index, if there is one, says just where each tensor is."""
    return placed is None or placed == {name: entry.file for name, entry in tensors.items()}


def _settle(headers: Mapping[str, Header], placed: Mapping[str, str] | None, stored: Stored) -> None:
    """Choose among copies as the index says, and find what it says wrongly."""
    stored.tensors, stale = {}, dict[str, TensorEntry]()
    for name, header in headers.items():
        stored.findings.extend(_find_copies((stored.tensors, stale), header.tensors, placed or {}))
        # A copy that the index takes from another file is stale.
        taken = {key: entry for key, entry in header.tensors.items() if (placed or {}).get(key, name) == name}
        stored.tensors.update(taken)
        stale.update({key: header.tensors[key] for key in header.tensors.keys() - taken.keys()})
    if placed is not None:
        stored.findings.extend(_check_index(placed, stored))


def _check_metadata(metadata: Mapping[str, object], name: str) -> Iterator[Finding]:
    """The safetensors library opens no file whose metadata has anything but texts."""
    others = {key: value for key, value in metadata.items() if not isinstance(value, str)}
    for key, value in sorted(others.items()):
        yield report(
            "QL003", "has metadata that is no text", where=key, file=name, expected="a string", found=repr(value)[:80]
        )


def _find_copies(
    seen: tuple[Mapping[str, TensorEntry], ...], new: Mapping[str, TensorEntry], placed: Mapping[str, str]
) -> Iterator[Finding]:
    """Tensors of a file that another file holds, too. A loader that reads all files takes the last one."""
    twice = {key: entries[key].file for entries in seen for key in entries.keys() & new.keys()}
    for key in sorted(twice):
        files = (twice[key], new[key].file)
        if key not in placed:
            yield report(
                "QL008", "is stored twice, and no index decides", where=key, file=files[1], found=f"also in {files[0]}"
            )
            continue
        stale = files[0] if files[1] == placed[key] else files[1]
        finding = report(
            "QL008",
            "is stored in several files, of which the index takes one",
            where=key,
            file=stale,
            expected=f"only in {placed[key]}",
            remedy="remove the copy: some loaders take the last that they read",
        )
        yield replace(finding, severity=Severity.WARNING)


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


def _check_total(storage: Storage, weights: Weights, stored: Stored) -> Iterator[Finding]:
    """The total of what is there, where all is there that the index means."""
    incomplete = stored.broken or any(finding.code == "QL005" for finding in weights.findings)
    if weights.total is not None and not incomplete:
        yield from find_wrong_total(storage, weights.total, stored.tensors, weights.files)
