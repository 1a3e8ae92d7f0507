"""The modules that a checkpoint stores tensors of, with what their names and shapes say that they are."""

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from qload.checkpoint import Checkpoint, Modules, TensorEntry
from qload.checkpoint.names import group_below
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.outline.numbers import Blurring, Numbers, find_numbers
from qload.patterns import generalise
from qload.quantization import Quantization, Treatment

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
_HEADS = ("lm_head", "embed_out")
_ATTENTIONS = frozenset({"self_attn", "attn", "attention", "self_attention"})


Likeness = tuple[str, Treatment, bool, tuple[tuple[str, str, tuple[int, ...]], ...]]
"""A module's pattern, its treatment, whether it was refused, and the name, dtype and shape of each of its tensors."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredModule:
    """A module's tensors by their names below it, and what its method does to it, if it does not refuse.

    `pattern` is what its name shares with those of the same place in other layers.
    """

    info: ModuleInfo
    tensors: Mapping[str, TensorEntry]
    treatment: Treatment
    pattern: str
    refused: bool = False

    @property
    def likeness(self) -> Likeness:
        """What modules share that headers cannot tell apart, their names aside."""
        stored = tuple([(leaf, entry.dtype, entry.shape) for leaf, entry in self.tensors.items()])
        return (self.pattern, self.treatment, self.refused, stored)


def list_modules(
    checkpoint: Checkpoint, quantization: Quantization, refused: dict[str, str]
) -> Iterator[tuple[str, StoredModule]]:
    """Every module of the headers, each with the first that is alike; why one is refused is put into `refused`."""
    listing = _Listing(checkpoint, quantization, refused)
    return ((name, listing.find(name)) for name in listing.names())


@dataclass(slots=True)
class _Listing:
    """The modules of a checkpoint as they are listed: what is alike is described, and asked about, once.

    `places` has the modules that a method cannot tell apart, by what they are told by; `samples` those that headers
    cannot.
    """

    checkpoint: Checkpoint
    quantization: Quantization
    refused: dict[str, str]
    places: dict[Hashable, StoredModule] = field(default_factory=dict)
    samples: dict[Likeness, StoredModule] = field(default_factory=dict)
    blurring: Blurring = field(default_factory=Blurring)
    numbers: Numbers = field(init=False)
    numbered: dict[str, bool] = field(default_factory=dict)
    below: Modules = field(init=False)

    def __post_init__(self) -> None:
        is_by_place = self.quantization.method.info.is_by_place
        self.numbers = find_numbers(self.quantization.section) if is_by_place else Numbers(everywhere=True)
        self.below = group_below(self.checkpoint.modules, self.attentions())

    def attentions(self) -> frozenset[str]:
        """The attention modules, which may store tensors below those right below them."""
        above = {name.rpartition(".")[0] for name in self.checkpoint.modules}
        return frozenset(name for name in above if _is_attention(name))

    def names(self) -> Iterator[str]:
        """The modules that store tensors, and the attentions that are right above them."""
        modules, waiting = self.checkpoint.modules, set(self.below) - self.checkpoint.modules.keys()
        for name in modules:
            if waiting and (above := name.rpartition(".")[0]) in waiting:
                waiting.remove(above)
                yield above
            yield name

    def find(self, name: str) -> StoredModule:
        """The first module that is like the one of that name."""
        tensors, own = self.checkpoint.tensors, self.checkpoint.modules.get(name, {})
        stored = own if name not in self.below else {**self.below[name], **own}
        what = [(leaf, (entry := tensors[full]).dtype, entry.shape) for leaf, full in stored.items()]
        key = (self.place(name), *what)
        found = self.places.get(key)
        if found is None:
            found = self.places[key] = self.describe(name, {leaf: tensors[full] for leaf, full in stored.items()}, own)
        elif found.refused:
            self.refused[name] = self.refused[found.info.name]
        return found

    def place(self, name: str) -> str:
        """What tells the method one module from another that stores the same."""
        blurred = self.blurring.blur(name)
        numbered = self.numbered.get(blurred)
        if numbered is None:
            numbered = self.numbered[blurred] = self.numbers.matter_in(blurred)
        return name if numbered or name in self.checkpoint.descriptions else blurred

    def describe(self, name: str, tensors: Mapping[str, TensorEntry], own: Collection[str]) -> StoredModule:
        info, pattern = _describe(name, tensors), generalise(name)
        try:
            treatment = self.quantization.treat(info)
            if treatment.scheme is None:
                # What the modules below an attention store is its own only where the method says so.
                tensors = {leaf: entry for leaf, entry in tensors.items() if leaf in own}
            module = StoredModule(info, tensors, treatment, pattern)
        except ValueError as error:
            self.refused[name] = str(error)
            plain = Treatment(self.quantization.unquantized, None)
            module = StoredModule(info, tensors, plain, pattern, refused=True)
        return self.samples.setdefault(module.likeness, module)


def _is_attention(name: str) -> bool:
    return name.rpartition(".")[2] in _ATTENTIONS


def _is_of_a_stack(leaf: str, entry: TensorEntry) -> bool:
    """Whether it can only be that of a stack of linear layers: other weights in three dimensions are alone."""
    return leaf != "weight" and len(entry.shape) > 2


def _describe(name: str, tensors: Mapping[str, TensorEntry]) -> ModuleInfo:
    last = name.rpartition(".")[2]
    kind = Kind.LINEAR
    classes: tuple[str, ...] = ("Linear",)
    if last in _EMBEDDINGS:
        kind, classes = Kind.EMBEDDING, ("Embedding",)
    elif last in _HEADS:
        kind = Kind.LM_HEAD
    elif _is_attention(name):
        kind, classes = Kind.KV_CACHE, ()
    elif not any(len(entry.shape) == 2 or _is_of_a_stack(leaf, entry) for leaf, entry in tensors.items()):
        classes = ()
    return ModuleInfo((name,), kind, classes, frozenset(tensors), tensors)
