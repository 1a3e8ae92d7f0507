"""What layers have in common that are alike: worked out once, however many there are."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from qload.checkpoint import TensorEntry
from qload.declare import ParameterSpec
from qload.geometry import Geometry, Shard
from qload.layout import Cut
from qload.plan.fits import Fit, Reading, count_measured, find_expert_axis, make_fit
from qload.plan.targets import Position, Source, Target
from qload.quantization import Quantization, Treatment


@dataclass(frozen=True, slots=True)
class Blank:
    """A parameter before it is filled: its shape on this rank, and what it holds.

    `owned` is the number of its entries that copies are to write, each once: all but the padding; None where each
    source writes as many as it stores.
    """

    spec: ParameterSpec
    shape: tuple[int, ...]
    owned: int | None
    fill: float


@dataclass(frozen=True, slots=True)
class Gap:
    """A part of an expert that the rank owns, and that `count` sources fill in place of one."""

    part: int
    expert: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Filling:
    """How the sources of a layer fill one of its parameters: the fit of each.

    As they are declared, all tensors have one of the `dtypes`, and `shapes` in the order of the sources.
    """

    blank: Blank
    fits: tuple[Fit, ...]
    dtypes: frozenset[str]
    shapes: Sequence[tuple[int, ...]]

    @classmethod
    def of(cls, blank: Blank, fits: tuple[Fit, ...]) -> "Filling":
        allowed = [frozenset(fit.stored.dtypes[:1] if fit.is_by_bytes else fit.stored.dtypes) for fit in fits]
        dtypes = frozenset[str]().union(*allowed).intersection(*allowed)
        return cls(blank, fits, dtypes, [fit.shape for fit in fits])

    def read_all(self, entries: Sequence[TensorEntry]) -> list[tuple[TensorEntry, Reading]] | None:
        """How to read what each source stores, where all of it is as declared; None elsewhere, without the reason."""
        if [entry.shape for entry in entries] != self.shapes or not {entry.dtype for entry in entries} <= self.dtypes:
            return None
        return [(entry, fit.readings[0]) for entry, fit in zip(entries, self.fits, strict=True)]


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How the sources of a layer make it up: by their numbers, those that it `uses`, and the `strays`.

    `fillings` has one for each of the layer's parameters, by the sources that are used.
    """

    used: tuple[int, ...]
    strays: tuple[int, ...]
    gaps: tuple[Gap, ...]
    fillings: tuple[Filling, ...]


Lengths = tuple[tuple[str, tuple[int, ...]], ...]
"""Of each parameter of which only stored tensors know the length: its name, and what each source stores."""


@dataclass(slots=True)
class Form:
    """Layers of one treatment, geometry and shard, and of the same `lengths` where only stored tensors know them."""

    quantization: Quantization
    treatment: Treatment
    geometry: Geometry
    shard: Shard
    lengths: Lengths = ()
    blanks: tuple[Blank, ...] = ()
    _arrangements: dict[tuple[Position, ...], Arrangement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        specs = self.quantization.declare(self.treatment, self.geometry)
        longest = {name: max(lengths, default=0) for name, lengths in self.lengths}
        sized = (spec.measure(longest.get(spec.name, 0)) if spec.layout.is_measured else spec for spec in specs)
        self.blanks = tuple(_make_blank(spec, self.geometry, self.shard) for spec in sized)

    def measure(self, sources: Sequence[Source], tensors: Mapping[str, TensorEntry]) -> Lengths:
        """What a layer's sources store of the parameters of which only stored tensors know the length."""
        return tuple(
            (blank.spec.name, tuple(self._stored_length(blank.spec, source, tensors) for source in sources))
            for blank in self.blanks
            if blank.spec.layout.is_measured
        )

    def _stored_length(self, spec: ParameterSpec, source: Source, tensors: Mapping[str, TensorEntry]) -> int:
        entry = tensors.get(f"{source.prefix}.{spec.stored_as}")
        return 0 if entry is None else count_measured(spec, source, self.geometry, entry.shape)

    def arrange(self, sources: Sequence[Source]) -> Arrangement:
        """The arrangement of a layer's sources, which is that of all layers whose sources stand alike."""
        positions = tuple([source.position for source in sources])
        if positions not in self._arrangements:
            self._arrangements[positions] = self._arrange(sources)
        return self._arrangements[positions]

    def _arrange(self, sources: Sequence[Source]) -> Arrangement:
        used = tuple(number for number, source in enumerate(sources) if source.belongs_to(self.geometry))
        chosen = [sources[number] for number in used]
        fits = list(self._fit_all(used, chosen))
        return Arrangement(
            used,
            tuple(number for number in range(len(sources)) if number not in used),
            _find_gaps(chosen, self.geometry, self.shard),
            tuple(Filling.of(blank, tuple(fit[number] for fit in fits)) for number, blank in enumerate(self.blanks)),
        )

    def _fit_all(self, numbers: Sequence[int], sources: Sequence[Source]) -> Iterator[Sequence[Fit]]:
        """The fits of each source: experts that are stored alike lie alike, each in a place of its own."""
        first: dict[Hashable, tuple[int, Sequence[Fit]]] = {}
        axes = [find_expert_axis(blank.spec.layout) for blank in self.blanks]
        for number, source in zip(numbers, sources, strict=True):
            if source.expert is None:
                yield self._fit(number, source)
                continue
            lengths = tuple(stored[number] for _, stored in self.lengths)
            key = (replace(source, prefix="", expert=None), source.expert in _range(self.shard.experts), lengths)
            if None in axes or key not in first:
                first[key] = (source.expert, self._fit(number, source))
            expert, fits = first[key]
            count = source.expert - expert
            yield [fit.shift(axis or 0, count) if count else fit for axis, fit in zip(axes, fits, strict=True)]

    def _fit(self, number: int, source: Source) -> list[Fit]:
        stored = self.quantization.declare(self.treatment, source.geometry(self.geometry))
        # The first wins where a faulty method declares a name twice.
        by_name = {spec.name: spec for spec in reversed(stored)}
        lengths = {name: stored[number] for name, stored in self.lengths}
        specs = [blank.spec for blank in self.blanks]
        return [
            make_fit(spec, by_name[spec.name], source, self.geometry, self.shard, lengths.get(spec.name))
            for spec in specs
        ]


@dataclass(slots=True)
class Forms:
    """The forms of all layers of one plan."""

    quantization: Quantization
    _forms: dict[tuple[Treatment, Geometry, Shard, Lengths], Form] = field(default_factory=dict)

    def of(self, target: Target, tensors: Mapping[str, TensorEntry]) -> Form:
        """The form of a layer; `tensors` are those of the checkpoint, which may alone know how long some are."""
        form = self._find(target, ())
        lengths = form.measure(target.sources, tensors)
        return self._find(target, lengths) if lengths else form

    def _find(self, target: Target, lengths: Lengths) -> Form:
        key = (target.treatment, target.geometry, target.shard, lengths)
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = Form(self.quantization, *key)
        return form


def _make_blank(spec: ParameterSpec, geometry: Geometry, shard: Shard) -> Blank:
    extents = geometry.extents
    shape = spec.layout.local_shape(extents, shard.local(geometry).extents)
    owned = spec.layout.local_shape(extents, shard.without_padding().local(geometry).extents)
    padded = any(cut.padding for cut in shard.out)
    return Blank(spec, shape, None if spec.layout.is_measured else prod(owned), 0 if padded else spec.fill)


def _find_gaps(sources: Sequence[Source], geometry: Geometry, shard: Shard) -> tuple[Gap, ...]:
    """The parts of the experts that the rank owns, but for those that come from exactly one source.

    What it owns no row of may come from none.
    """
    experts = _range(shard.experts) if geometry.experts is not None else (None,)
    counts = Counter(
        (part, expert)
        for source in sources
        for part in range(source.part, source.part + source.parts)
        for expert in (experts if source.expert is None else (source.expert,))
    )
    return tuple(
        Gap(part, expert, counts[part, expert])
        for expert in experts
        for part in range(len(geometry.parts))
        if counts[part, expert] > 1 or (counts[part, expert] == 0 and shard.out[part].size)
    )


def _range(cut: Cut) -> range:
    return range(cut.start, cut.stop)
