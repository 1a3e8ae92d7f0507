"""A file's tensors under transformers' names, with what is to be undone when they are read.

A quantized tensor's type is the end of its name, `q_proj.weight.q4_0`: so a method sees it, and a finding says it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qload.checkpoint import Interleaving, TensorEntry
from qload.findings import Finding, report
from qload_gguf.architectures import Architecture
from qload_gguf.header import Tensor
from qload_gguf.types import BLOCKS, VALUES

_BLOCK = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)(?:\.(\d+))?\.(weight|bias|scale|input_scale)")
_OUTER = re.compile(r"([a-z_]+)\.(weight|bias|scale|input_scale)")
_STACKS = {
    "ffn_gate_exps": ("gate",),
    "ffn_up_exps": ("up",),
    "ffn_down_exps": ("down",),
    "ffn_gate_up_exps": ("gate", "up"),
}
"""Modules that hold all experts, and the parts of each, one after another."""
_SINGLES = {"ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}
_ONE_ROW = "ffn_gate_inp_shexp"
_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}


@dataclass(frozen=True, slots=True)
class Translator:
    """Turns the tensors of one file into entries; `config` is the model's."""

    architecture: Architecture
    config: Mapping[str, Any]
    file: str

    def translate(self, tensor: Tensor) -> Iterator[TensorEntry | Finding]:
        """The entries of a tensor, or the finding that says why it has none."""
        outer, inner = _OUTER.fullmatch(tensor.name), _BLOCK.fullmatch(tensor.name)
        if outer is not None and (name := self.architecture.name(outer[1])) is not None:
            yield self._entry(tensor, name, outer[1], outer[2])
        elif inner is not None:
            yield from self._translate_block(tensor, f"model.layers.{inner[1]}", inner[2], inner[3], inner[4])
        else:
            yield self._unknown(tensor)

    def _translate_block(
        self, tensor: Tensor, block: str, module: str, expert: str | None, leaf: str
    ) -> Iterator[TensorEntry | Finding]:
        experts, modules = self.architecture.experts, self.architecture.modules
        if experts and module in _STACKS and tensor.shape:
            yield from self._cut_stack(tensor, block, _STACKS[module], leaf)
        elif experts and expert is not None and module in _SINGLES:
            yield self._entry(tensor, f"{block}.{experts[_SINGLES[module]].format(expert)}", module, leaf)
        elif expert is None and module in modules:
            yield self._entry(tensor, f"{block}.{modules[module]}", module, leaf)
        else:
            yield self._unknown(tensor)

    def _cut_stack(
        self, tensor: Tensor, block: str, parts: tuple[str, ...], leaf: str
    ) -> Iterator[TensorEntry | Finding]:
        """An entry for each part of each expert: whole rows, which lie together."""
        experts, *rest = tensor.shape
        if rest and rest[0] % len(parts):
            yield self._unknown(tensor)
            return
        shape = (rest[0] // len(parts), *rest[1:]) if rest else ()
        nbytes = (tensor.stop - tensor.start) // max(1, experts * len(parts))
        for number in range(experts):
            for place, part in enumerate(parts):
                start = tensor.start + (number * len(parts) + place) * nbytes
                cut = tensor._replace(shape=shape, start=start, stop=start + nbytes)
                yield self._entry(cut, f"{block}.{self.architecture.experts[part].format(number)}", "", leaf)

    def _entry(self, tensor: Tensor, name: str, module: str, leaf: str) -> TensorEntry:
        shape = (1, *tensor.shape) if module == _ONE_ROW and len(tensor.shape) == 1 else tensor.shape
        interleaving, shift = self._find_interleaving(tensor, module, leaf), self._find_shift(module, leaf)
        if tensor.type in VALUES:
            return TensorEntry(
                f"{name}.{leaf}", VALUES[tensor.type], shape, self.file, tensor.start, tensor.stop, interleaving, shift
            )
        block = BLOCKS[tensor.type]
        stored = (*shape[:-1], shape[-1] // block.elements * block.nbytes)
        full = f"{name}.{leaf}.{block.name.lower()}"
        return TensorEntry(full, "U8", stored, self.file, tensor.start, tensor.stop, interleaving)

    def _find_interleaving(self, tensor: Tensor, module: str, leaf: str) -> Interleaving | None:
        if not self.architecture.interleaved or module not in _HEADS or leaf not in ("weight", "bias"):
            return None
        rows, heads = tensor.shape[0] if tensor.shape else 0, self.config[_HEADS[module]]
        size = rows // heads
        # Rows that are no whole heads have the wrong shape, which is found when it is held against the model.
        return Interleaving(size, 2) if size and not rows % heads and not size % 2 else None

    def _find_shift(self, module: str, leaf: str) -> float:
        return self.architecture.shift if module.endswith("norm") and leaf == "weight" else 0.0

    def _unknown(self, tensor: Tensor) -> Finding:
        return report(
            "QL210",
            f"nothing in {self.architecture.class_name} reads this tensor",
            where=tensor.name,
            file=self.file,
            found=f"{BLOCKS[tensor.type].name if tensor.type in BLOCKS else VALUES[tensor.type]} {list(tensor.shape)}",
        )
