"""A checkpoint without the layers that headers cannot tell from another one."""

from collections.abc import Iterator
from dataclasses import replace

from qload.checkpoint import Checkpoint
from qload.outline.model import Outline
from qload.plan import Target
from qload.quantization import Quantization


def thin(checkpoint: Checkpoint, quantization: Quantization, drawn: Outline) -> Checkpoint:
    """The checkpoint without the layers that are like another one."""
    names = [name for sample in drawn.samples for name in _names(sample, checkpoint, quantization)]
    names += [tensor.stored_as for tensor in drawn.plain]
    return replace(checkpoint, tensors={name: checkpoint.tensors[name] for name in names})


def _names(layer: Target, checkpoint: Checkpoint, quantization: Quantization) -> Iterator[str]:
    """What a layer stores itself, and what it reads of the modules below it."""
    yield from checkpoint.modules.get(layer.name, {}).values()
    for spec in quantization.declare(layer.treatment, layer.geometry):
        name = f"{layer.name}.{spec.stored_as}"
        if name in checkpoint.tensors:
            yield name
