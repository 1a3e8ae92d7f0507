"""The modules of an outline by their place: what those of the same place in other layers share."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qload.checkpoint.names import split_name
from qload.configs import PARTS
from qload.declare import ParameterKind, ParameterSpec
from qload.examination import Examination
from qload.findings import Finding
from qload.geometry import Kind
from qload.layout import Dim
from qload.outline.sizes import PROBE
from qload.patterns import generalise
from qload.plan import Target

Stored = tuple[str, ParameterKind, tuple[tuple[Dim | None, int, int], ...], tuple[str, ...]]
"""A tensor's name, kind, dtypes, and how many elements of which dimension are how many entries along each axis."""

Form = tuple[str, tuple[Stored, ...]]
"""A method's name, and the tensors of a module as it declares them: what an engine has to know to hold it."""

_DECODERS = (
    *("model.layers", "model.language_model.layers", "language_model.model.layers", "language_model.layers"),
    *("transformer.h", "transformer.layers", "transformer.blocks", "gpt_neox.layers", "model.decoder.layers"),
    *("backbone.layers", "thinker.model.layers", "transformer.encoder.layers"),
)
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_OUTPUT = "output"
_LOSSES = ("QL002", "QL003", "QL005", "QL006", "QL011")
_LAYER = re.compile(rf"(?:{'|'.join(map(re.escape, _DECODERS))})\.(\d+)(?=\.)")


@dataclass(frozen=True, slots=True, eq=False)
class Kin:
    """The modules that headers cannot tell apart, and one of them as a target."""

    pattern: str
    sample: Target
    names: tuple[str, ...]

    @property
    def leaf(self) -> str:
        """The last word of their names."""
        return self.pattern.rpartition(".")[2]

    @property
    def above(self) -> str:
        """The pattern of the modules that they are in."""
        return self.pattern.rpartition(".")[0]

    @property
    def is_quantized(self) -> bool:
        return self.sample.treatment.scheme is not None


def list_kin(found: Examination) -> list[Kin]:
    """The layers of the outline, those that are alike together; without attentions, which hold no weights."""
    if found.outline is None:
        return []
    names: dict[str, list[str]] = defaultdict(list)
    samples: dict[str, Target] = {}
    for name, sample in found.outline.layers:
        names[sample.name].append(name)
        samples[sample.name] = sample
    return [
        Kin(generalise(first), sample, tuple(names[first]))
        for first, sample in samples.items()
        if sample.geometry.kind is not Kind.KV_CACHE
    ]


def group_places(kin: Iterable[Kin]) -> Mapping[str, list[Kin]]:
    """Those of one place together, by its pattern."""
    places: dict[str, list[Kin]] = defaultdict(list)
    for each in kin:
        places[each.pattern].append(each)
    return places


def form_of(kin: Kin, found: Examination) -> Form:
    """How modules are stored, whatever their sizes, without what only some parts of a layer may store.

    What is said of outputs is such: those of keys and values may go into a cache.
    """
    treatment = kin.sample.treatment
    if found.quantization is None or treatment.scheme is None:
        return (treatment.method.name, ())
    specs = found.quantization.declare(treatment, PROBE)
    return (
        treatment.method.name,
        tuple(_describe(spec) for spec in specs if not (spec.partial or spec.name.startswith(_OUTPUT))),
    )


def _describe(spec: ParameterSpec) -> Stored:
    """Without what only decides how it is divided."""
    axes = tuple((axis.dim, axis.logical, axis.stored) for axis in spec.layout.axes)
    return (spec.stored_as, spec.kind, axes, spec.dtypes)


def is_whole(found: Examination) -> bool:
    """Whether every file that should hold tensors could be read: what is not seen is then not stored."""
    return not found.checkpoint.lost and not any(finding.code in _LOSSES for finding in found.findings)


def find_explained(findings: Iterable[Finding], codes: Collection[str]) -> frozenset[str]:
    """The modules that findings of these codes are about already."""
    places = [finding.where for finding in findings if finding.code in codes]
    return frozenset([*places, *(split_name(place)[0] for place in places)])


def text_sections(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The parts of a model's config that speak of its text model, each with the keys that lead to it."""
    yield (), config
    for key in PARTS:
        section = config.get(key)
        if isinstance(section, Mapping):
            yield from (((key, *keys), below) for keys, below in text_sections(section))


def count_layers(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """The key by which a config counts the decoder's layers, and their number; None where it does not say one."""
    for _, section in reversed(list(text_sections(config))):
        counts = {key: section[key] for key in _COUNTS if type(section.get(key)) is int}
        if counts:
            return next(iter(counts.items())) if len(set(counts.values())) == 1 else None
    return None


def number_layer(name: str) -> tuple[str, int] | None:
    """The decoder's list of layers that a module is in, and the number of its layer; None outside of one."""
    match = _LAYER.match(name)
    return None if match is None else (name[: match.start(1) - 1], int(match[1]))


def is_beyond(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a module is in a layer after those that the config counts: one that predicts further tokens."""
    place, counted = number_layer(name), count_layers(config)
    return place is not None and counted is not None and place[1] >= counted[1]
