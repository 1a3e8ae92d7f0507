"""The formats in which weights can be stored, and what each can hold.

Source: compressed-tensors, the compressors' `can_compress` and `COMPRESSION_FORMAT_PRIORITY`; of `marlin-24` and the
sparse ones, its version 0.13.
"""

from qload_compressed_tensors.config import Strategy
from qload_compressed_tensors.quantizers import Quantizer

PACKED = "pack-quantized"
PLAIN_FORMATS = ("int-quantized", "float-quantized", "naive-quantized")
NVFP4 = "nvfp4-pack-quantized"
MXFP4 = "mxfp4-pack-quantized"
MXFP6 = "mxfp6-pack-quantized"
MXFP8 = "mxfp8-quantized"
MARLIN_24 = "marlin-24"
SMALL_FLOATS = {NVFP4: (4, 16), MXFP4: (4, 32), MXFP6: (6, 32), MXFP8: (8, 32)}
"""The formats of microscaled floats: what each fixes of bits and group size."""
FORMATS = (PACKED, *PLAIN_FORMATS, *SMALL_FLOATS, MARLIN_24)

SPARSE_24 = "sparse-24-bitmask"
SPARSE = "sparse-bitmask"
SPARSE_FORMATS = (SPARSE_24, SPARSE)


def choose_format(written: str | None, weights: Quantizer, inputs: Quantizer | None) -> str:
    """The format that is written, or the one that the package takes where none is.

    Raises ValueError for an unknown one, and for weights that it cannot hold.
    """
    chosen = _infer(weights, inputs) if written in (None, "mixed-precision") else written
    if chosen not in FORMATS:
        raise ValueError(f"format {chosen!r} is not one of {', '.join(FORMATS)}")
    _check(weights, chosen)
    return chosen


def _infer(weights: Quantizer, inputs: Quantizer | None) -> str:
    if weights.is_float:
        fixed = (weights.bits, weights.group)
        matching = (name for name, fixes in SMALL_FLOATS.items() if fixes == fixed)
        found = next(matching, "float-quantized")
        return found if found != MXFP8 or weights.has_powers else "float-quantized"
    return PACKED if inputs is None else "int-quantized"


def _check(weights: Quantizer, stored_as: str) -> None:
    if stored_as in SMALL_FLOATS:
        _check_small_floats(weights, stored_as)
    elif weights.dynamic or weights.strategy in (Strategy.TOKEN, Strategy.TENSOR_GROUP, Strategy.ATTN_HEAD):
        raise ValueError(f"weights by {weights.strategy} are not supported")
    elif stored_as == MARLIN_24:
        _check_marlin(weights)
    elif stored_as == PACKED:
        if weights.is_float or not 1 <= weights.bits <= 8:
            raise ValueError(f"{weights} cannot be stored as {PACKED}")
    elif weights.bits > 8 or (weights.is_float and weights.bits != 8):
        raise ValueError(f"{weights} cannot be stored as {stored_as}")


def _check_small_floats(weights: Quantizer, stored_as: str) -> None:
    grouped = weights.strategy is Strategy.GROUP or (stored_as == NVFP4 and weights.has_global_scale)
    if (weights.bits, weights.group) != SMALL_FLOATS[stored_as] or not grouped or not weights.is_plain_float:
        raise ValueError(f"{weights} cannot be stored as {stored_as}")


def _check_marlin(weights: Quantizer) -> None:
    """Source: compressed-tensors 0.13, `Marlin24Compressor.validate_quant_compatability` and `get_permutations_24`."""
    extent = weights.group == 128 if weights.strategy is Strategy.GROUP else weights.strategy is Strategy.CHANNEL
    plain = weights.symmetric and not weights.is_float and not weights.orders_groups
    if not (extent and plain and weights.bits in (4, 8)):
        raise ValueError(f"{weights} cannot be stored as {MARLIN_24}")
