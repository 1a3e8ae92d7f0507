"""The modules that a checkpoint stores tensors of, with what their names and shapes say that they are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qload.checkpoint import Checkpoint, TensorEntry
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.patterns import generalise
from qload.quantization import Quantization, Treatment

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
_HEADS = ("lm_head", "embed_out")
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")


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
    plain = Treatment(quantization.unquantized, None)
    for name, stored in checkpoint.modules.items():
        tensors = {leaf: checkpoint.tensors[full] for leaf, full in stored.items()}
        info, pattern = _describe(name, tensors), generalise(name)
        try:
            yield StoredModule(info, tensors, quantization.treat(info), pattern)
        except ValueError as error:
            refused[name] = str(error)
            yield StoredModule(info, tensors, plain, pattern, refused=True)


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
    elif last in _ATTENTIONS:
        kind, classes = Kind.KV_CACHE, ()
    elif not any(len(entry.shape) == 2 or _is_of_a_stack(leaf, entry) for leaf, entry in tensors.items()):
        classes = ()
    return ModuleInfo((name,), kind, classes, frozenset(tensors), tensors)
