"""The modules that a checkpoint stores tensors of, with what their names and shapes say that they are."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from qload.checkpoint import Checkpoint, Modules, TensorEntry
from qload.checkpoint.names import group_below
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.numbers import Blurring, Numbers
from qload.patterns import generalise
from qload.quantization import Quantization, Treatment

EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
HEADS = ("lm_head", "embed_out")
ATTENTIONS = frozenset({"self_attn", "attn", "attention", "self_attention"})
_ATTENTION = "att"
"""What is in all of these names, so that few names have to be parted."""


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
) -> list[tuple[str, StoredModule]]:
    """Every module of the headers, each with the first that is alike; why one is refused is put into `refused`."""
    return _Listing(checkpoint, quantization, refused).list()


@dataclass(slots=True)
class _Listing:
    """The modules of a checkpoint as they are listed: what is alike is described, and asked about, once.

    `samples` has the first of those that headers cannot tell apart; `below` what attentions store below modules of
    theirs.
    """

    checkpoint: Checkpoint
    quantization: Quantization
    refused: dict[str, str]
    samples: dict[Likeness, StoredModule] = field(default_factory=dict)
    numbers: Numbers = field(init=False)
    below: Modules = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = self.quantization.numbers
        self.below = self.attentions() if self.quantization.method.info.capabilities.kv_cache else {}

    def attentions(self) -> Modules:
        """What each attention stores below the modules right below it, as some tools store scales of its caches."""
        near = {name: stored for name, stored in self.checkpoint.modules.items() if _ATTENTION in name}
        above = {name.rpartition(".")[0] for name in near}
        return group_below(near, {name for name in above if _is_attention(name)})

    def modules(self) -> Iterator[tuple[str, Mapping[str, str]]]:
        """The modules that store tensors with what they store, and the attentions, each before those below it."""
        modules, waiting = self.checkpoint.modules, set(self.below)
        for name, stored in modules.items():
            if waiting and _ATTENTION in name and (above := name.rpartition(".")[0]) in waiting:
                waiting.remove(above)
                if above not in modules:
                    yield above, self.below[above]
            yield name, stored if name not in self.below else {**self.below[name], **stored}

    def list(self) -> list[tuple[str, StoredModule]]:
        """Every module with its sample. The loop is short of words, for it runs for each of 45,000 modules."""
        tensors, blur = self.checkpoint.tensors, Blurring().blur
        blurred: dict[str, str] = {}
        known: dict[Hashable, StoredModule | None] = {}
        listed = []
        for name, stored in self.modules():
            above, _, last = name.rpartition(".")
            place = blurred.get(above)
            if place is None:
                place = blurred[above] = blur(above)
            key: list[Hashable] = [place, last if not last.isdecimal() else blur(name)]
            for leaf, full in stored.items():
                entry = tensors[full]
                key += (leaf, entry.dtype, entry.shape)
            told = tuple(key)
            module = known.get(told)
            if module is None:
                module = self.describe(name, stored)
                known[told] = None if self.is_apart(blur(name)) else module
            elif module.refused:
                self.refused[name] = self.refused[module.info.name]
            listed.append((name, module))
        return listed

    def is_apart(self, blurred: str) -> bool:
        """Whether more than its place may tell the method one module from another that stores the same."""
        return self.numbers.matter_in(blurred) or bool(self.checkpoint.descriptions)

    def describe(self, name: str, stored: Mapping[str, str]) -> StoredModule:
        """The first module that is like the one of that name."""
        own = self.checkpoint.modules.get(name, {})
        tensors = {leaf: self.checkpoint.tensors[full] for leaf, full in stored.items()}
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
    return name.rpartition(".")[2] in ATTENTIONS


def _is_of_a_stack(leaf: str, entry: TensorEntry) -> bool:
    """Whether it can only be that of a stack of linear layers: other weights in three dimensions are alone."""
    return leaf != "weight" and len(entry.shape) > 2


def _describe(name: str, tensors: Mapping[str, TensorEntry]) -> ModuleInfo:
    last = name.rpartition(".")[2]
    kind = Kind.LINEAR
    classes: tuple[str, ...] = ("Linear",)
    if last in EMBEDDINGS:
        kind, classes = Kind.EMBEDDING, ("Embedding",)
    elif last in HEADS:
        kind = Kind.LM_HEAD
    elif _is_attention(name):
        kind, classes = Kind.KV_CACHE, ()
    elif not any(len(entry.shape) == 2 or _is_of_a_stack(leaf, entry) for leaf, entry in tensors.items()):
        classes = ()
    return ModuleInfo((name,), kind, classes, frozenset(tensors), tensors)
