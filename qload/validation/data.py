"""What only the data of a checkpoint shows, read without torch: a few bytes of each tensor, or all of them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from msgspec import structs

from qload.checkpoint import Folder, Storage
from qload.declare import ParameterKind, ParameterSpec
from qload.examination import Examination
from qload.findings import Finding, report
from qload.outline.modules import HEADS
from qload.roles import is_column, is_row
from qload.validation.checksums import Checksum, read_checksums
from qload.validation.pieces import Progress, Scan, Task, read_file
from qload.validation.shares import find_idle_caches, find_unlike_parts
from qload.validation.stored import Stored, list_stored
from qload.values import FLOAT_BITS, ConstantWatch, FloatBits, Watch, WeightWatch, ZeroWatch, find_unit, make_watches

_AT_ONCE = (ParameterKind.GLOBAL_SCALE, ParameterKind.SETTING)
"""What is small enough to be read wherever a few bytes are."""
_WEIGHTS = (ParameterKind.PACKED, ParameterKind.WEIGHT, ParameterKind.BIAS)
_PLAIN = (".weight", ".bias")
_PROBED = 96
"""As many bytes of zero-points say whether they could be those of another version, whatever their bits."""


def find_bad_values(found: Examination, *, deep: bool, progress: Progress | None = None) -> Iterator[Finding]:
    """What the numbers of tensors show: with `deep` of all, and whether files are those that were published.

    Reads pieces of bounded size. Never raises for what is wrong with the checkpoint: a file that cannot be read is a
    finding.
    """
    if found.quantization is None or found.outline is None:
        return
    storage = found.checkpoint.storage or Folder(found.checkpoint.folder)
    wanted, read = (_is_read, _read_all) if deep else (_is_probed, _read_few)
    stored = list(list_stored(found.checkpoint, found.quantization, found.outline, wanted))
    numbers: dict[str, bytes] = {}
    yield from _without_known(read(found, storage, stored, numbers, progress), found.findings)
    yield from find_unlike_parts([each for each in stored if each.spec.facts.shared], numbers)
    yield from find_idle_caches([each for each in stored if each.is_of_cache], numbers)


def _is_read(spec: ParameterSpec, is_of_cache: bool) -> bool:  # noqa: ARG001
    return True


def _is_probed(spec: ParameterSpec, is_of_cache: bool) -> bool:
    return is_of_cache or spec.kind in _AT_ONCE or spec.facts.shared or spec.facts.other is not None


def _without_known(new: Iterable[Finding], known: Iterable[Finding]) -> Iterator[Finding]:
    """Without what headers say of the same file, or what was said of it once."""
    said = {(finding.code, finding.file) for finding in known}
    for finding in new:
        if finding.code not in ("QL004", "QL013"):
            yield finding
        elif (finding.code, finding.file) not in said:
            said.add((finding.code, finding.file))
            yield finding


def _read_all(
    found: Examination,
    storage: Storage,
    stored: Sequence[Stored],
    numbers: dict[str, bytes],
    progress: Progress | None,
) -> Iterator[Finding]:
    """Every byte of every weight file, once: for its numbers, and for its checksum."""
    tasks = [*(_watch(each, numbers, deep=True) for each in stored), *_watch_plain(found, stored)]
    files = sorted({entry.file for entry in found.checkpoint.tensors.values()})
    checksums = read_checksums(storage, files)
    scan = Scan(storage, sum(_measure(storage, file) for file in files), progress)
    by_file = _group(tasks)
    for file in files:
        wanted = checksums.get(file)
        digest = None if wanted is None else wanted.start(_measure(storage, file))
        complete = yield from read_file(scan, file, by_file.get(file, []), None, digest)
        if wanted is not None and digest is not None and complete and digest.hexdigest() != wanted.value:
            yield _other_file(file, wanted, digest.hexdigest())


def _read_few(
    found: Examination,  # noqa: ARG001
    storage: Storage,
    stored: Sequence[Stored],
    numbers: dict[str, bytes],
    progress: Progress | None,
) -> Iterator[Finding]:
    """What is small; and of zero-points a few of each kind of module, or all where one of those looks wrong."""
    small = [_watch(each, numbers) for each in stored if each.spec.kind in _AT_ONCE or each.is_compared]
    versioned = [each for each in stored if each.spec.facts.other is not None]
    probes = [_watch(_shorten(each), {}) for each in versioned if each.is_sample]
    if any(True for _ in _read_ranges(Scan(storage), probes)):
        small += [_watch(each, numbers) for each in versioned]
    total = sum(task.stop - task.start for task in small)
    yield from _read_ranges(Scan(storage, total, progress), small)


def _read_ranges(scan: Scan, tasks: Iterable[Task]) -> Iterator[Finding]:
    for file, those in _group(tasks).items():
        yield from read_file(scan, file, those, [(task.start, task.stop) for task in those])


def _group(tasks: Iterable[Task]) -> dict[str, list[Task]]:
    """Tasks by their files, in the order in which they lie there."""
    ordered = sorted(tasks, key=lambda task: (task.entry.file, task.start))
    return {file: list(those) for file, those in groupby(ordered, lambda task: task.entry.file)}


def _watch(stored: Stored, numbers: dict[str, bytes], *, deep: bool = False) -> Task:
    """What is to be done with a tensor; what is compared with others is put among the numbers."""
    entry, spec = stored.entry, stored.spec
    watches: tuple[Watch, ...] = ()
    if deep or spec.kind in _AT_ONCE or spec.facts.other is not None:
        watches = make_watches(spec.kind, spec.bounds, spec.facts, entry.dtype)
    if deep:
        watches = (*watches, *_watch_weights(spec, FLOAT_BITS.get(entry.dtype)))
    kept = numbers if stored.is_compared else None
    return Task(entry, watches, find_unit(spec.facts, stored.itemsize), kept, stored.width)


def _watch_weights(spec: ParameterSpec, number: FloatBits | None) -> Iterator[Watch]:
    """What is looked for where every number is read; a power of two has no zero."""
    if spec.kind is ParameterKind.PACKED:
        yield ConstantWatch("packed weight")
    elif spec.kind.is_scale and number is not None and number.signed and spec.kind is not ParameterKind.GLOBAL_SCALE:
        yield ZeroWatch(spec.kind.value)
    if spec.kind in _WEIGHTS and number is not None and spec.facts.blocks is None:
        yield WeightWatch(number)


def _watch_plain(found: Examination, stored: Iterable[Stored]) -> Iterator[Task]:
    """The weights and biases of what is not quantized."""
    known = {each.entry.name for each in stored}
    for name, entry in found.checkpoint.tensors.items():
        number = FLOAT_BITS.get(entry.dtype)
        if number is not None and name.endswith(_PLAIN) and name not in known:
            watches: tuple[Watch, ...] = (WeightWatch(number),)
            if _is_trained(name):
                watches = (*watches, ConstantWatch("weight"))
            yield Task(entry, watches, number.nbytes, None, number.nbytes)


def _is_trained(name: str) -> bool:
    """Whether it is a projection's or a head's weight.

    Tables may be zeros that nobody reads, gates zeros to begin with, and norms zeros to which one is added.
    """
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and (is_column(module) or is_row(module) or module.rpartition(".")[2] in HEADS)


def _shorten(stored: Stored) -> Stored:
    """The first entries of a tensor, a whole number of words of any pattern."""
    entry = stored.entry
    return stored._replace(entry=structs.replace(entry, stop=min(entry.stop, entry.start + _PROBED)))


def _measure(storage: Storage, file: str) -> int:
    """The bytes of a file; 0 where it cannot be told, which reading it says better."""
    try:
        return storage.size(file)
    except OSError:
        return 0


def _other_file(file: str, wanted: Checksum, found: str) -> Finding:
    return report(
        "QL010",
        "is not the file that was published",
        file=file,
        expected=f"{wanted.algorithm} {wanted.value}, as {wanted.origin} says",
        found=found,
        remedy="download it again",
    )
