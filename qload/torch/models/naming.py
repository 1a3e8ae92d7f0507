"""Which modules of a checkpoint fill which modules of a transformers model.

A checkpoint's names may be older than the model's, and store experts one by one that the model stacks. The
model's own conversion mapping says how. What it does to tensors, a layer of ours need not do where it reads
them as they lie on disk, and `converting` does for all others.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightTransform

from qload.checkpoint import Checkpoint
from qload.dtypes import FLOATS
from qload.numbers import Blurring
from qload.patterns import NUMBER
from qload.plan import Source
from qload.torch.models.converting import Conversion
from qload.torch.models.likeness import Match, Shapes, Template, tell_numbers

_STACK = "MergeModulelist"
_FUSE = "Concatenate"
_TURN = "Transpose"
_SPLITS = ("Chunk", "Split")
_UP, _DOWN = ("gate_up_proj", "up_proj"), "down_proj"
_NUMBERED = re.compile(r"^(?P<above>.+?)\.(?P<number>\d+)(?:\.(?P<below>\w+))?$")
# What tools call the two halves of an expert's first layer, one layer of both, and the second layer.
_ROLES = {
    **dict.fromkeys(("gate_proj", "w1", "gate"), (_UP, 0, 1)),
    **dict.fromkeys(("up_proj", "w3", "up", "v1"), (_UP, 1, 1)),
    **dict.fromkeys(("gate_up_proj", "gate_up", "w13"), (_UP, 0, 2)),
    **dict.fromkeys(("down_proj", "w2", "down"), ((_DOWN,), 0, 1)),
}


@dataclass(frozen=True, slots=True)
class Names:
    """The correspondence, both ways.

    `sources` are the modules of the checkpoint that fill a module of the model, or a stack of experts there.
    `tensors` are the checkpoint's names of the model's tensors. `parts` are the names of a stack's parts.
    `unsupported` are modules that would have to be converted in a way that only dense tensors can be.
    `plain` are the checkpoint's modules that store nothing but a plain weight and bias. `converted` has
    the conversion of each of the model's tensors that is not stored as the model has it, `sources` or not.
    `shapes` are those of the tensors of each module that is a whole stack of experts.
    """

    sources: Mapping[str, tuple[Source, ...]]
    tensors: Mapping[str, str]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unsupported: tuple[str, ...] = ()
    plain: frozenset[str] = frozenset()
    converted: Mapping[str, Conversion] = field(default_factory=dict)
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)

    def below(self, name: str) -> Iterator[Source]:
        """The sources of a module of the model and of everything below it."""
        for path, sources in self.sources.items():
            if path == name or path.startswith(f"{name}."):
                yield from sources


def match_names(model: PreTrainedModel, checkpoint: Checkpoint) -> Names:
    """Rename every module and tensor of the checkpoint as the model calls it."""
    renamer = _Renamer(model)
    sources: dict[str, list[Source]] = defaultdict(list)
    tensors: dict[str, str] = {}
    parts: dict[str, tuple[str, ...]] = {}
    unsupported = []
    for module, stored in checkpoint.modules.items():
        match = renamer.match(module, tuple(stored.values()))
        tensors |= match.tensors
        parts |= match.parts
        for path, source in match.places:
            sources[path].append(source)
        if not match.supported:
            unsupported.append(module)
    ordered = {path: tuple(sorted(found, key=_order)) for path, found in sources.items()}
    converted = {target: each for each in renamer.conversions.values() for target in each.targets}
    plain, shapes = _plain_modules(checkpoint), _stack_shapes(ordered, checkpoint)
    return Names(ordered, tensors, parts, tuple(unsupported), plain, converted, shapes)


def _stack_shapes(
    sources: Mapping[str, tuple[Source, ...]], checkpoint: Checkpoint
) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes below each module that fills a stack, which is named as one."""
    whole = [
        source.prefix
        for path, found in sources.items()
        if path.endswith((*_UP, _DOWN))
        for source in found
        if source.expert is None
    ]
    modules = {module: checkpoint.modules.get(module, {}) for module in whole}
    return {
        module: {leaf: checkpoint.tensors[name].shape for leaf, name in stored.items()}
        for module, stored in modules.items()
    }


def _plain_modules(checkpoint: Checkpoint) -> frozenset[str]:
    return frozenset(
        module
        for module, stored in checkpoint.modules.items()
        if stored.keys() <= {"weight", "bias"}
        and all(checkpoint.tensors[name].dtype in FLOATS for name in stored.values())
    )


def _order(source: Source) -> tuple[int, int]:
    return (source.expert or 0, source.part)


class _Renamer:
    def __init__(self, model: PreTrainedModel) -> None:
        transforms = get_model_conversion_mapping(model)
        self._renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
        self._converters = [each for each in transforms if isinstance(each, WeightConverter)]
        self._base = model.base_model_prefix
        self._blurring = Blurring()
        self._templates: dict[tuple[str, ...], Template | None] = {}
        self._tells_numbers = tell_numbers(transforms)
        self.shapes = Shapes(_shapes(model))
        self.conversions: dict[str, Conversion] = {}
        self._parts: dict[str, tuple[str, ...]] = {}

    def match(self, module: str, stored: tuple[str, ...]) -> Match:
        """What a module fills, and its tensors with it; modules that are named alike are looked at once."""
        if self._tells_numbers:
            return self._match(module, stored)
        start = len(module)
        key, numbers = (self._blurring.blur(module), *[name[start:] for name in stored]), NUMBER.findall(module)
        template = self._templates.get(key)
        found = None if template is None else template.fill(module, stored, numbers, self.shapes.known)
        if found is None:
            self.shapes.asked.clear()
            found = self._match(module, stored)
            # What is to be converted is noted name by name.
            if len(found.tensors) == len(stored):
                self._templates[key] = Template.of(found, numbers, self.shapes)
        return found

    def _match(self, module: str, stored: tuple[str, ...]) -> Match:
        tensors = {new: name for name in stored if (new := self.rename(name)) is not None}
        places = self.place(module)
        parts = {path: self._parts[path] for path, _ in places if path in self._parts}
        return Match(places, tensors, parts, bool(places) or all(name in self.shapes for name in tensors))

    def rename(self, stored: str) -> str | None:
        """A tensor's name in the model; None for one that is to be converted, and noted as such."""
        name = _apply(stored, self._renamings)
        for converter in self._converters:
            renamed, pattern = converter.rename_source_key(name)
            if pattern is not None and (target := self._prefix(renamed)) in self.shapes:
                conversion = self.conversions.setdefault(target, Conversion(converter, target))
                conversion.stored.setdefault(pattern, []).append(stored)
                return None
        found = self._prefix(name)
        # A renaming may be meant for names that are older than those of the checkpoint.
        return found if found in self.shapes or stored not in self.shapes else stored

    def place(self, module: str) -> list[tuple[str, Source]]:
        """The modules or stacks of the model that a stored module fills; none where only a dense one could."""
        name = _apply(f"{module}.weight", self._renamings)
        for converter in self._converters:
            renamed, pattern = converter.rename_source_key(name)
            if pattern is not None:
                operations = [type(operation).__name__ for operation in converter.operations]
                if operations[:1] == [_STACK] and operations[1:] in ([], [_FUSE]):
                    return self._stack(converter, pattern, name, self._prefix(renamed), module)
                if operations == [_TURN]:
                    return self._experts(renamed.removesuffix(".weight"), module)
                return self._split(converter, renamed, module) if _splits_rows(converter) else []
        path = self._prefix(name).removesuffix(".weight")
        return [(path, Source(module))] if f"{path}.weight" in self.shapes else self._experts(path, module)

    def _experts(self, path: str, module: str) -> list[tuple[str, Source]]:
        """A module that no conversion knows: a whole stack of experts, one expert of it, or none."""
        stack = self._find_stack(path)
        if stack is not None:
            return [(stack, Source(module, parts=_count_parts(stack)))]
        stored, renamed = _NUMBERED.match(module), _NUMBERED.match(path)
        if stored is None or renamed is None:
            return [(path, Source(module))]
        expert = int(renamed["number"])
        above = _apply(f"{stored['above']}.weight", self._renamings).removesuffix(".weight")
        # As lists of modules are called: `experts.down_projs.3`.
        stack = self._find_stack(above) or self._find_stack(above.removesuffix("s"))
        if stack is not None:
            return [(stack, Source(module, parts=_count_parts(stack), expert=expert))]
        names, part, parts = _ROLES.get(renamed["below"] or "", ((), 0, 1))
        found = (stack for name in names if (stack := self._find_stack(f"{renamed['above']}.{name}")) is not None)
        stack = next(found, None)
        if stack is None:
            return [(path, Source(module))]
        # Without gates there is one part, which is called as the second one is with them.
        first = part if part < _count_parts(stack) else 0
        return [(stack, Source(module, first, parts, expert))]

    def _find_stack(self, path: str) -> str | None:
        """The stack of that name in the model."""
        name = self._prefix(path)
        is_stack = len(self.shapes.find(name) or ()) == 3 and name.rpartition(".")[2] in (*_UP, _DOWN)
        return name if is_stack else None

    def _stack(
        self, converter: WeightConverter, pattern: str, name: str, stack: str, module: str
    ) -> list[tuple[str, Source]]:
        """One of the modules that a stack of experts is made of."""
        number = re.search(pattern.replace("*.", r"(\d+)\."), name)
        if number is None:
            return []
        self._parts[stack] = tuple(_part(each) for each in converter.source_patterns)
        return [(stack, Source(module, converter.source_patterns.index(pattern), expert=int(number[1])))]

    def _split(self, converter: WeightConverter, renamed: str, module: str) -> list[tuple[str, Source]]:
        """A module whose rows are those of several modules of the model."""
        first, *others = converter.target_patterns
        names = [self._prefix(renamed.replace(first, target)) for target in (first, *others)]
        rows = [(self.shapes.find(name) or (0,))[0] for name in names]
        return [
            (
                name.removesuffix(".weight"),
                Source(module, before=sum(rows[:number]), after=sum(rows[number + 1 :])),
            )
            for number, name in enumerate(names)
        ]

    def _prefix(self, name: str) -> str:
        """Add or drop the base model's prefix where the model has the other name."""
        start = f"{self._base}."
        if name in self.shapes:
            return name
        if name.startswith(start) and name.removeprefix(start) in self.shapes:
            return name.removeprefix(start)
        return start + name if start + name in self.shapes else name


def _count_parts(stack: str) -> int:
    return 2 if stack.endswith(_UP[0]) else 1


def _splits_rows(converter: WeightConverter) -> bool:
    """Whether all that is done is to give each of several modules some of the stored rows."""
    operation, *others = converter.operations
    settings = {"dim": 0, "num_shards_attribute": None}
    is_split = type(operation).__name__ in _SPLITS and not others
    return is_split and all(getattr(operation, name, value) == value for name, value in settings.items())


def _part(pattern: str) -> str:
    """The module's name at the end of a pattern: `mlp.experts.*.gate_proj.weight` gives gate_proj."""
    return pattern.removesuffix(".weight").rpartition(".")[2]


def _apply(name: str, renamings: Iterable[WeightTransform]) -> str:
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer, under each of its names."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: tuple(tensor.shape)
        for name, tensor in {**tensors, **dict(model.named_buffers(remove_duplicate=False))}.items()
    }
