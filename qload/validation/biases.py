"""Biases that some modules of the same place have, and others lack."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from qload.examination import Examination
from qload.findings import Finding, report
from qload.validation.places import Kin, group_places, list_kin, number_layer

Make = tuple[str, int, int, bool, frozenset[str]]
"""What modules share that should have a bias all, or none: their place, size, whether quantized, and neighbours."""


def find_odd_biases(found: Examination) -> Iterator[Finding]:
    """QL208: modules of the decoder's layers that are alike in all but that some have a bias."""
    uneven = [group for group in group_places(list_kin(found)).values() if len(set(map(_has_bias, group))) > 1]
    if not uneven:
        return
    neighbours = _list_neighbours(found)
    for group in uneven:
        for alike in _sort_by_make(group, neighbours).values():
            yield from _compare(alike)


def _has_bias(kin: Kin) -> bool:
    return kin.sample.geometry.bias


def _list_neighbours(found: Examination) -> Mapping[str, set[str]]:
    """The modules in each block, without the numbers that an expert or a layer may have for a name."""
    blocks: dict[str, set[str]] = defaultdict(set)
    for name in found.checkpoint.modules:
        above, _, last = name.rpartition(".")
        blocks[above].add(last)
    return blocks


def _sort_by_make(group: Iterable[Kin], neighbours: Mapping[str, set[str]]) -> Mapping[Make, dict[str, bool]]:
    """Whether each module has a bias, with others of the same make."""
    makes: dict[Make, dict[str, bool]] = defaultdict(dict)
    for kin in group:
        geometry = kin.sample.geometry
        for name in filter(number_layer, kin.names):
            beside = frozenset(neighbours[name.rpartition(".")[0]])
            make = (kin.pattern, geometry.out_features, geometry.in_features, kin.is_quantized, beside)
            makes[make][name] = _has_bias(kin)
    return makes


def _compare(biases: Mapping[str, bool]) -> Iterator[Finding]:
    """A finding for each of the fewer; where there are as many, those that lack one are taken to have lost it."""
    having = [name for name, has in biases.items() if has]
    lacking = [name for name, has in biases.items() if not has]
    if having and lacking:
        odd, more = (having, False) if len(having) < len(lacking) else (lacking, True)
        yield from (_odd(name, more, len(biases) - len(odd)) for name in odd)


def _odd(name: str, is_lacking: bool, others: int) -> Finding:
    return report(
        "QL208",
        "has no bias, and modules of the same place in other layers have one"
        if is_lacking
        else "has a bias, and modules of the same place in other layers have none",
        where=name,
        expected=f"as {others} other{'s' if others > 1 else ''}",
        remedy="store the bias again" if is_lacking else "leave out the bias if the model has none",
    )
