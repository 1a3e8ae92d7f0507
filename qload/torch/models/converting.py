"""Tensors of a model that transformers computes from stored ones: joined, cut, turned or reordered.

Only what is stored in ordinary floats can be converted so. What a layer of ours reads as it lies on disk is not
converted at all.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter, dot_natural_key

from qload.checkpoint import Checkpoint
from qload.checkpoint.names import split_name
from qload.dtypes import FLOATS
from qload.findings import Finding, report
from qload.plan import PlainTarget
from qload.torch.dtypes import dtype_code
from qload.torch.models.building import describe_error, kept_dtype


@dataclass(slots=True)
class Conversion:
    """One use of a converter: `name` is the first of the model's tensors that it makes.

    `stored` are the names of the checkpoint's tensors that it takes, by the converter's pattern for them.
    """

    converter: WeightConverter
    name: str
    stored: dict[str, list[str]] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """The checkpoint's tensors, pattern by pattern, numbers in their order."""
        return [name for names in self.stored.values() for name in sorted(names, key=dot_natural_key)]

    @property
    def targets(self) -> list[str]:
        """The model's tensors that it makes."""
        first, *others = self.converter.target_patterns
        return [self.name, *(self.name.replace(first, other) for other in others)]

    def run(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors, of the checkpoint's. Raises whatever transformers does where they do not fit."""
        converter = deepcopy(self.converter)
        patterns = {name: pattern for pattern, names in self.stored.items() for name in names}
        for name in self.sources:
            # As when transformers saves, with tensors that are there in place of ones that are being read.
            tensor: Any = tensors[name]
            converter.add_tensor(self.name, name, patterns[name], tensor)
        made = converter.convert(self.name, model=model, config=model.config)
        return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}


class Stage(nn.Module):
    """Where the stored tensors of one conversion are read to: a buffer for each, named by its number."""

    def __init__(self, conversion: Conversion, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.conversion = conversion
        self.entries = [checkpoint.tensors[name] for name in conversion.sources]
        self.dtype = kept_dtype(model, conversion.name, model.dtype)
        for number, entry in enumerate(self.entries):
            self.register_buffer(str(number), torch.empty(entry.shape, dtype=self.dtype, device="meta"))

    @property
    def targets(self) -> Iterator[PlainTarget]:
        """What is to be read here."""
        for number, entry in enumerate(self.entries):
            dtype = dtype_code(self.dtype) if entry.dtype in FLOATS else entry.dtype
            yield PlainTarget(f"{self.conversion.name}.{number}", entry.name, entry.shape, dtype)

    def check(self, model: PreTrainedModel) -> Iterator[Finding]:
        """Whether the conversion makes the model's tensors: tried on shapes alone."""
        lacking = set(self.conversion.converter.source_patterns) - self.conversion.stored.keys()
        foreign = [entry for entry in self.entries if entry.dtype not in FLOATS]
        for entry in foreign:
            yield report(
                "QL211", "it would have to be converted in a way that only dense tensors can be", where=entry.name
            )
        if lacking:
            yield report(
                "QL201",
                "a part of a tensor of the model is not stored",
                where=self.conversion.name,
                expected=", ".join(sorted(self.conversion.converter.source_patterns)),
                found=", ".join(self.conversion.sources),
            )
        elif not foreign:
            yield from self._check_shapes(model)

    def _check_shapes(self, model: PreTrainedModel) -> Iterator[Finding]:
        where = ", ".join(self.conversion.sources[:2])
        try:
            made = self._convert(model)
        except Exception as error:  # whatever torch makes of shapes that do not fit
            yield report("QL307", f"the tensors cannot be converted ({describe_error(error)})", where=where)
            return
        for name in self.conversion.targets:
            expected = list(_tensor(model, name).shape)
            found = list(made[name].shape) if name in made else None
            if found != expected:
                yield report("QL307", f"{name} gets the wrong shape", where=where, expected=expected, found=found)

    def _convert(self, model: PreTrainedModel) -> dict[str, Tensor]:
        buffers = {entry.name: self.get_buffer(str(number)) for number, entry in enumerate(self.entries)}
        return self.conversion.run(model, buffers)

    def finish(self, model: PreTrainedModel) -> None:
        """Convert what has been read, put it into the model, and give the memory back."""
        for name, tensor in self._convert(model).items():
            _put(model, name, tensor.to(kept_dtype(model, name, model.dtype)))
        for number in range(len(self.entries)):
            delattr(self, str(number))


def make_stages(
    model: PreTrainedModel, converted: Mapping[str, Conversion], checkpoint: Checkpoint, replaced: Sequence[str]
) -> dict[str, Stage]:
    """A stage, by the name of the tensor, for each conversion that makes what no layer of ours holds."""
    below = tuple(f"{name}." for name in replaced)
    chosen = {each.name: each for target, each in converted.items() if not target.startswith(below)}
    return {name: Stage(each, model, checkpoint) for name, each in chosen.items()}


def _tensor(model: PreTrainedModel, name: str) -> Tensor:
    module, leaf = split_name(name)
    found: Tensor = getattr(model.get_submodule(module), leaf)
    return found


def _put(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    path, leaf = split_name(name)
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
