"""The modules that a checkpoint stores tensors of, with what their names and shapes say that they are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qload.checkpoint import Checkpoint, Modules, TensorEntry
from qload.checkpoint.names import group_below
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.patterns import generalise
from qload.quantization import Quantization, Treatment

EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
HEADS = ("lm_head", "embed_out")
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")


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


def list_modules(checkpoint: Checkpoint, quantization: Quantization, refused: dict[str, str]) -> Iterator[StoredModule]:
    """Every module of the headers; why a method refuses one is put into `refused`."""
    plain, below = Treatment(quantization.unquantized, None), group_below(checkpoint.modules)
    for name in _names(checkpoint.modules):
        own = checkpoint.modules.get(name, {})
        stored = {**below.get(name, {}), **own} if _is_attention(name) else own
        tensors = {leaf: checkpoint.tensors[full] for leaf, full in stored.items()}
        info, pattern = _describe(name, tensors), generalise(name)
        try:
            treatment = quantization.treat(info)
            if treatment.scheme is None:
                # What the modules below an attention store is its own only where the method says so.
                tensors = {leaf: entry for leaf, entry in tensors.items() if leaf in own}
            yield StoredModule(info, tensors, treatment, pattern)
        except ValueError as error:
            refused[name] = str(error)
            yield StoredModule(info, tensors, plain, pattern, refused=True)


def _names(modules: Modules) -> Iterator[str]:
    """The modules that store tensors, and the attentions that are right above them."""
    seen: set[str] = set()
    for name in modules:
        above = name.rpartition(".")[0]
        if _is_attention(above) and above not in modules and above not in seen:
            seen.add(above)
            yield above
        yield name


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
