"""Modules whose names differ in their numbers alone: what one of them fills in a model, told of the others.

A model's renamings are regexes, and a mixture's experts are tens of thousands of modules.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from transformers.core_model_loading import WeightTransform

from qload.patterns import NUMBER, generalise
from qload.plan import Source

Shape = tuple[int, ...]
_TELLS = re.compile(r"(?<![A-Za-z_\d])\d|\.\d|\[")
"""In a pattern what may tell one number from another; digits in the middle of a word are of a name: `w13`."""


@dataclass(frozen=True, slots=True)
class Match:
    """What a module of a checkpoint fills: modules or stacks of the model, the latter with the names of their `parts`.

    `tensors` are the stored names by the model's. What would have to be converted as only dense tensors can be is not
    `supported`.
    """

    places: Sequence[tuple[str, Source]]
    tensors: Mapping[str, str]
    parts: Mapping[str, tuple[str, ...]]
    supported: bool = True


@dataclass(slots=True)
class Shapes:
    """The shapes of a model's tensors by name; `asked` keeps the answers."""

    known: Mapping[str, Shape]
    patterns: frozenset[str] = field(init=False)
    asked: dict[str, Shape | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.patterns = frozenset(map(generalise, self.known))

    def find(self, name: str) -> Shape | None:
        found = self.asked[name] = self.known.get(name)
        return found

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None


def tell_numbers(transforms: Iterable[WeightTransform]) -> bool:
    """Whether a renaming may do other things to one number than to another of as many digits."""
    patterns = (each for transform in transforms for each in (*transform.source_patterns, *transform.target_patterns))
    return any(_TELLS.search(re.sub(r"\\\d", "", each)) for each in patterns)


@dataclass(frozen=True, slots=True)
class Template:
    """A match in which the numbers of names are left open, by their places in the module's name.

    `present` are tensors of the model that it relies on, and their shapes. Where the names stay the same, there are no
    `tensors`.
    """

    places: Sequence[tuple[str, Source, int | None]]
    tensors: Sequence[str] | None
    parts: Mapping[str, tuple[str, ...]]
    present: Sequence[tuple[str, Shape]]
    supported: bool

    @classmethod
    def of(cls, match: Match, numbers: Sequence[str], shapes: Shapes) -> "Template | None":
        """What holds for all modules that are named alike; None where one does not tell.

        That is, where its own numbers are equal to each other, or the model has a tensor elsewhere that it lacks here.
        """
        lacking = (name for name, shape in shapes.asked.items() if shape is None)
        if len(set(numbers)) < len(numbers) or any(generalise(name) in shapes.patterns for name in lacking):
            return None
        opening = _Opening(numbers)
        try:
            return cls(
                [(opening.open(path), source, opening.find(source.expert)) for path, source in match.places],
                None
                if all(map(str.__eq__, match.tensors, match.tensors.values()))
                else [*map(opening.open, match.tensors)],
                {opening.open(path): parts for path, parts in match.parts.items()},
                [(opening.open(name), shape) for name, shape in shapes.asked.items() if shape is not None],
                match.supported,
            )
        except ValueError:
            return None

    def fill(
        self, module: str, stored: Sequence[str], numbers: Sequence[str], shapes: Mapping[str, Shape]
    ) -> Match | None:
        """The match of another module, of those tensors and numbers, where the model has those shapes; else None."""
        for name, shape in self.present:
            if shapes.get(name.format(*numbers)) != shape:
                return None
        names = stored if self.tensors is None else [name.format(*numbers) for name in self.tensors]
        return Match(
            [(path.format(*numbers), _move(source, module, at, numbers)) for path, source, at in self.places],
            dict(zip(names, stored, strict=True)),
            {path.format(*numbers): parts for path, parts in self.parts.items()},
            self.supported,
        )


def _move(source: Source, module: str, at: int | None, numbers: Sequence[str]) -> Source:
    expert = None if at is None else int(numbers[at])
    return Source(module, source.part, source.parts, expert, source.before, source.after, source.turned)


@dataclass(frozen=True, slots=True)
class _Opening:
    """Takes the numbers out of names. Raises ValueError for a number that is not one of them."""

    numbers: Sequence[str]

    def open(self, name: str) -> str:
        escaped = name.replace("{", "{{").replace("}", "}}")
        return NUMBER.sub(lambda match: f"{{{self.numbers.index(match[0])}}}", escaped)

    def find(self, expert: int | None) -> int | None:
        return None if expert is None else self.numbers.index(str(expert))
