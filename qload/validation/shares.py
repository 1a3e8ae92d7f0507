"""Numbers that are right or wrong together: of parts that are computed as one layer, and of all caches."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from qload.findings import Finding, report
from qload.roles import FUSED
from qload.validation.stored import Stored
from qload.values import FLOAT_BITS

_PLACES = {name: number for number, names in enumerate(FUSED) for name in names}

Numbers = Mapping[str, bytes]
"""The bytes of scales, by their tensors' names."""


def find_unlike_parts(stored: Sequence[Stored], numbers: Numbers) -> Iterator[Finding]:
    """Parts of one layer whose scale is to be the same, and is not."""
    groups: dict[tuple[str, int, str, str], dict[str, Stored]] = defaultdict(dict)
    for each in stored:
        parent, _, last = each.layer.rpartition(".")
        if last in _PLACES and each.entry.name in numbers:
            groups[parent, _PLACES[last], each.spec.stored_as, each.entry.dtype][last] = each
    for (parent, place, leaf, _), parts in groups.items():
        if len({numbers[each.entry.name] for each in parts.values()}) > 1:
            yield _unlike(parent, FUSED[place], leaf, parts, numbers)


def _unlike(parent: str, names: Sequence[str], leaf: str, parts: Mapping[str, Stored], numbers: Numbers) -> Finding:
    ordered = [parts[name] for name in names if name in parts]
    found = ", ".join(f"{each.layer.rpartition('.')[2]} {_decode(each, numbers)[0]:g}" for each in ordered)
    return report(
        "QL506",
        f"the parts of a fused layer have different values of {leaf}",
        where=ordered[0].entry.name,
        file=ordered[0].entry.file,
        expected=f"one value in {parent or 'the model'}",
        found=found,
        remedy="an engine that computes them as one takes one of the values: quantize them as one",
    )


def find_idle_caches(stored: Sequence[Stored], numbers: Numbers) -> Iterator[Finding]:
    """Scales of keys and values that are 1 in all of the checkpoint: what they are before any calibration."""
    read = [each for each in stored if each.entry.name in numbers]
    if not all(value == 1 for each in read for value in _decode(each, numbers)):
        return
    for each in read:
        yield report(
            "QL507",
            "the scale of keys or values is 1, as all of them are",
            where=each.entry.name,
            file=each.entry.file,
            remedy="they were never calibrated: quantize with samples, or keep keys and values unquantized",
        )


def _decode(stored: Stored, numbers: Numbers) -> list[float]:
    number, data = FLOAT_BITS[stored.entry.dtype], numbers[stored.entry.name]
    count = len(data) // number.nbytes
    pieces = (data[place * number.nbytes :][: number.nbytes] for place in range(count))
    return [number.decode(int.from_bytes(piece, "little", signed=True)) for piece in pieces]
