"""What bitsandbytes does to one module, and how that lies on disk, which the config does not say in full."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from qload.checkpoint import TensorEntry
from qload.dtypes import BITS
from qload.hookspecs import ModuleInfo
from qload.layout import packing
from qload_bitsandbytes.config import STORAGE, BitsAndBytesConfig

QUANT_TYPES = ("nf4", "fp4")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Source: bitsandbytes' `quantize_4bit`, and `quantize_blockwise` for blocks of blocks."""
BLOCK_SIZE, NESTED_BLOCK_SIZE = 64, 256
"""What bitsandbytes takes where it is told nothing."""

STATE = "weight.quant_state.bitsandbytes__"
"""The name of the document, without the quant type."""
WEIGHT, ABSMAX, NESTED_ABSMAX, ROW_SCALE = "weight", "weight.absmax", "weight.nested_absmax", "SCB"


@dataclass(frozen=True, slots=True)
class FourBitScheme:
    """Codes of a table, two to a byte, in blocks of the flattened weight; the bytes are stored as `storage`.

    With `nested`, the blocks' scales are codes as well, in blocks of that many.
    """

    quant_type: str
    block_size: int
    nested: int | None
    storage: str

    @property
    def packing(self) -> int:
        """How many elements one stored entry holds."""
        return packing(4, BITS[self.storage])[0]

    @property
    def nested_size(self) -> int:
        """How many elements share a scale of scales."""
        return self.block_size * (self.nested or 1)

    def is_aligned(self, columns: int) -> bool:
        """Whether every row of so many columns begins a block."""
        return columns % self.block_size == 0

    def __str__(self) -> str:
        words = [f"{self.quant_type} block {self.block_size}"]
        words += [] if self.nested is None else [f"nested {self.nested}"]
        words += [] if self.storage == "U8" else [f"as {self.storage}"]
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Int8Scheme:
    """Rows of int8; inputs too, but for the features that somewhere reach the threshold. Zero means no exception."""

    threshold: float

    def __str__(self) -> str:
        return "int8 channel, inputs dynamic" + (f" up to {self.threshold:g}" if self.threshold else "")


def choose_four_bits(config: BitsAndBytesConfig, module: ModuleInfo) -> FourBitScheme:
    """The scheme of a module: as its tensors' names and headers say, and the config where it stores none."""
    packed = module.tensors.get(WEIGHT)
    storage = packed.dtype if packed is not None and packed.dtype in STORAGE.values() else config.storage
    elements = _count(packed) * BITS[storage] // 4
    blocks, outer_blocks = _count(module.tensors.get(ABSMAX)), _count(module.tensors.get(NESTED_ABSMAX))
    return FourBitScheme(
        _find_quant_type(config, module.stored),
        _find_block_size(elements, blocks, BLOCK_SIZE),
        _find_block_size(blocks, outer_blocks, NESTED_BLOCK_SIZE) if _is_nested(config, module) else None,
        storage,
    )


def _is_nested(config: BitsAndBytesConfig, module: ModuleInfo) -> bool:
    absmax = module.tensors.get(ABSMAX)
    if not module.stored:
        return config.bnb_4bit_use_double_quant
    return NESTED_ABSMAX in module.stored or (absmax is not None and absmax.dtype == "U8")


def _count(entry: TensorEntry | None) -> int:
    return prod(entry.shape) if entry is not None else 0


def _find_block_size(count: int, blocks: int, usual: int) -> int:
    """The size of blocks of which `count` elements, or one less, make so many; the usual one where none does."""
    sizes = (usual, *BLOCK_SIZES)
    return next((size for size in sizes if -(-count // size) == blocks), usual)


def _find_quant_type(config: BitsAndBytesConfig, stored: Iterable[str]) -> str:
    """The document's name has the type by which it is decoded. Raises ValueError for one that is not known."""
    named = sorted(leaf.removeprefix(STATE) for leaf in stored if leaf.startswith(STATE))
    if not named:
        return config.bnb_4bit_quant_type
    if named[0] not in QUANT_TYPES:
        raise ValueError(f"the quant type {named[0]!r} is not one of {', '.join(QUANT_TYPES)}")
    return named[0]
