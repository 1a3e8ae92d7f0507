"""Mixtures of experts: whether all are there, and stored alike."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qload.examination import Examination
from qload.findings import Finding, report
from qload.hookspecs import Parts
from qload.patterns import generalise
from qload.validation.places import Form, Kin, find_explained, form_of, is_beyond, is_whole, list_kin

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_INSIDE = ".experts."
_EXPLAINED = ("QL101", "QL201", "QL202", "QL205", "QL210", "QL308")


@dataclass(slots=True)
class Mixture:
    """The experts of one block that are stored one by one: the numbers of those that have each projection."""

    leaves: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    @property
    def numbers(self) -> set[int]:
        """Of all that store anything."""
        return set().union(*self.leaves.values())


def find_odd_experts(found: Examination) -> Iterator[Finding]:
    """QL205: experts that are missing, and mixtures whose experts are not stored alike."""
    mixtures = _list_mixtures(found)
    if mixtures:
        if is_whole(found):
            for name, mixture in mixtures.items():
                yield from _find_missing(name, mixture, _count_experts(found.checkpoint.config))
        yield from _find_stacked(mixtures, found)
        yield from _find_mixed(found)


def _list_mixtures(found: Examination) -> Mapping[str, Mixture]:
    """The mixtures of the checkpoint, without those of layers that predict further tokens, which vary."""
    mixtures: dict[str, Mixture] = defaultdict(Mixture)
    experts: dict[str, tuple[Mixture, int, str] | None] = {}
    # A module has the expert of those beside it: its name is parted once for all of them.
    for name in found.checkpoint.modules:
        above, _, last = name.rpartition(".")
        if above not in experts:
            mixture, number, leaf = split_expert(f"{above}.")
            experts[above] = (mixtures[mixture], int(number), leaf) if _INSIDE in above and number.isdecimal() else None
        expert = experts[above]
        if expert is not None:
            expert[0].leaves[expert[2] + last].add(expert[1])
    return {name: mixture for name, mixture in mixtures.items() if not is_beyond(name, found.checkpoint.config)}


def split_expert(name: str) -> tuple[str, str, str]:
    """The mixture of an expert's module, the expert's number if it is one, and the module's name below the expert."""
    above, _, rest = name.rpartition(_INSIDE)
    number, _, leaf = rest.partition(".")
    return f"{above}.experts", number, leaf


def _count_experts(config: Mapping[str, Any]) -> int:
    """The number of experts that a config says; 0 where it says several, or none."""
    counts = set(_read_counts(config))
    return counts.pop() if len(counts) == 1 else 0


def _read_counts(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if key in _COUNTS:
            # A list has a number for each layer, or for each of several kinds of experts.
            yield value if type(value) is int else -1
        elif isinstance(value, Mapping):
            yield from _read_counts(value)


def _find_missing(name: str, mixture: Mixture, count: int) -> Iterator[Finding]:
    numbers = mixture.numbers
    expected = max(count, max(numbers) + 1)
    for number in sorted(set(range(expected)) - numbers):
        yield _missing(f"{name}.{number}", "the expert is not stored", expected)
    for leaf, having in mixture.leaves.items():
        # A projection that a few have tells less than one that a few lack.
        if 2 * len(having) > len(numbers):
            for number in sorted(numbers - having):
                yield _missing(f"{name}.{number}.{leaf}", "a projection of the expert is not stored", expected)


def _missing(where: str, message: str, expected: int) -> Finding:
    return report(
        "QL205",
        message,
        where=where,
        expected=f"{expected} experts that are all stored",
        remedy="the checkpoint is incomplete: convert or download it again",
    )


def _find_stacked(mixtures: Mapping[str, Mixture], found: Examination) -> Iterator[Finding]:
    """Mixtures that are stored one by one where others of the same place are one tensor, or that are both."""
    places = {generalise(name) for name in mixtures}
    stacks: dict[str, list[str]] = defaultdict(list)
    for name in found.checkpoint.modules:
        if ".experts" not in name:
            continue
        above, _, last = name.rpartition(".")
        stack = name if last == "experts" else above
        is_stack = stack.endswith(".experts") and not last.isdecimal() and generalise(stack) in places
        if is_stack and _has_stack(name, found) and not is_beyond(name, found.checkpoint.config):
            stacks[stack].append(last)
    for stack, leaves in stacks.items():
        yield report(
            "QL205",
            "the experts are stored as one tensor, and others of the same place one by one",
            where=stack,
            expected="one layout for all layers",
            found=", ".join(leaves),
            remedy="store all mixtures alike",
        )


def _has_stack(name: str, found: Examination) -> bool:
    return any(len(found.checkpoint.tensors[each].shape) > 2 for each in found.checkpoint.modules[name].values())


def _find_mixed(found: Examination) -> Iterator[Finding]:
    """Experts of one mixture that are quantized differently, as no engine computes them together."""
    parts = Parts.ALIKE if found.quantization is None else found.quantization.method.info.capabilities.parts
    if parts is Parts.ANY:
        return
    places: dict[str, list[Kin]] = defaultdict(list)
    for kin in list_kin(found):
        if _INSIDE in kin.pattern and "*" in kin.pattern:
            places[kin.pattern].append(kin)
    explained = find_explained(found.findings, _EXPLAINED)
    for group in places.values():
        if len({_form(kin, found, parts) for kin in group}) > 1:
            yield from _compare(group, found, parts, explained)


def _form(kin: Kin, found: Examination, parts: Parts) -> Form | bool:
    return kin.is_quantized if parts is Parts.QUANTIZED else form_of(kin, found)


def _compare(group: Iterable[Kin], found: Examination, parts: Parts, explained: frozenset[str]) -> Iterator[Finding]:
    mixtures: dict[str, dict[Form | bool, list[tuple[str, Kin]]]] = defaultdict(lambda: defaultdict(list))
    for kin in group:
        for name in kin.names:
            mixture, number, leaf = split_expert(name)
            if number.isdecimal() and leaf:
                mixtures[mixture][_form(kin, found, parts)].append((name, kin))
    for forms in mixtures.values():
        usual = max(forms.values(), key=len)
        for name, kin in (each for stored in forms.values() if stored is not usual for each in stored):
            if name not in explained:
                yield _odd(name, kin, usual[0][1])


def _odd(name: str, kin: Kin, usual: Kin) -> Finding:
    return report(
        "QL205",
        "the expert is stored in another way than others of its mixture",
        where=name,
        expected=usual.sample.treatment.label,
        found=kin.sample.treatment.label,
        remedy="quantize all experts of a mixture alike",
    )
