"""Quantizes as bitsandbytes does: to the nearest code of a block, or to int8 by rows.

Source of the arithmetic: bitsandbytes' `quantize_4bit`, `quantize_blockwise` and `int8_vectorwise_quant` for all
devices, `create_dynamic_map`, and `Int8Params`, which takes weights in float16.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.dtypes import dtype_code, torch_dtype
from qload.torch.strips import quantize_by_strips
from qload_bitsandbytes.schemes import FourBitScheme, Int8Scheme
from qload_bitsandbytes.states import DOCUMENT_BYTES, DTYPES, write_state

GREATEST = 127
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The values of NF4, in order."""
_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""The magnitudes of FP4 by their three bits, times twelve."""
_ORDERS = {"nf4": tuple(range(16)), "fp4": (11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3)}
"""The codes by their values; FP4 has two zeros, of which the first stands for zero itself."""
_POWERS = 7
"""The powers of ten that the table of scales reaches over."""
_LEAST = 1e-38


def quantize(weight: Tensor, scheme: FourBitScheme | Int8Scheme) -> dict[str, Tensor]:
    """The stored tensors of a weight. Raises ValueError for a dtype or a size that bitsandbytes does not take."""
    if isinstance(scheme, Int8Scheme):
        return quantize_by_strips(weight, 1, _quantize_rows)
    if dtype_code(weight.dtype) not in DTYPES.values():
        raise ValueError(f"weights of {str(weight.dtype).removeprefix('torch.')} are not of {', '.join(DTYPES)}")
    table = _make_table(scheme.quant_type, weight.device)
    packed, absmax = _quantize_flat(weight.flatten(), scheme.block_size, _prepare_codes(table, scheme.quant_type))
    made = {"weight_quantized": _store(packed, scheme), "quant_map": table}
    if scheme.nested is None:
        return {**made, "absmax": absmax, "quant_state": _describe(weight, scheme, None)}
    offset = absmax.mean()
    bytes_table = make_bytes_table(weight.device)
    codes, outer = _quantize_flat(absmax - offset, scheme.nested, _prepare_bytes(bytes_table))
    nested = {"absmax": codes, "nested_absmax": outer, "nested_quant_map": bytes_table}
    return {**made, **nested, "quant_state": _describe(weight, scheme, offset)}


def make_bytes_table(device: torch.device | None = None) -> Tensor:
    """The 256 values of scales that are quantized: the middles of ever more parts of each power of ten."""
    sizes = []
    for exponent in range(_POWERS):
        edges = torch.linspace(0.1, 1, (1 << exponent) + 1)
        sizes.append((edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - _POWERS + 1))
    positive = torch.cat(sizes)
    return torch.cat((-positive, torch.tensor([0.0]), positive, torch.tensor([1.0]))).sort().values.to(device)


def _quantize_rows(weight: Tensor) -> dict[str, Tensor]:
    """A row of zeros has no scale, and stays zero."""
    weight = weight.half()
    greatest = weight.abs().amax(1).float()
    scaled = weight * (GREATEST / greatest.unsqueeze(1))
    return {"weight_quantized": scaled.nan_to_num_(0).round_().to(torch.int8), "row_scale": greatest}


def _make_table(quant_type: str, device: torch.device) -> Tensor:
    if quant_type == "nf4":
        return torch.tensor(_NF4, device=device)
    codes = torch.tensor((*_FP4, *(0.0 - size for size in _FP4)), device=device)
    return codes / codes.max()


def _quantize_flat(values: Tensor, size: int, encode: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Values [n] in blocks, encoded and flat again, and the greatest magnitude of each block.

    A last block that is short is divided by its scale, others are multiplied by its inverse.
    """

    def quantize_blocks(blocks: Tensor) -> dict[str, Tensor]:
        blocks = blocks.float()
        greatest = blocks.abs().amax(1)
        return {"codes": encode(_clip(blocks * (1 / greatest.clamp_min(_LEAST)).unsqueeze(1))), "absmax": greatest}

    count = len(values) // size
    made = quantize_by_strips(values[: count * size].view(count, size), 1, quantize_blocks)
    codes, absmax = made["codes"].flatten(), made["absmax"]
    if count * size == len(values):
        return codes, absmax
    rest = values[count * size :].float()
    greatest = rest.abs().amax().clamp_min(_LEAST)
    return torch.cat((codes, encode(_clip(rest / greatest)))), torch.cat((absmax, greatest.unsqueeze(0)))


def _clip(scaled: Tensor) -> Tensor:
    return scaled.clamp_(-1, 1)


def _prepare_codes(table: Tensor, quant_type: str) -> Callable[[Tensor], Tensor]:
    """What packs values as the nearest codes of a table, two to a byte, the first in the high bits."""
    order = torch.tensor(_ORDERS[quant_type], dtype=torch.uint8, device=table.device)
    bounds = _find_bounds(table[order.int()]).unbind()
    is_sorted = _ORDERS[quant_type] == tuple(range(len(order)))

    def encode(values: Tensor) -> Tensor:
        places = _count_below(F.pad(values, (0, values.shape[-1] % 2)), bounds)
        codes = places if is_sorted else order[places.int()]
        return codes[..., ::2] << 4 | codes[..., 1::2]

    return encode


def _prepare_bytes(table: Tensor) -> Callable[[Tensor], Tensor]:
    """What encodes values as the nearest of a table in order."""
    bounds = _find_bounds(table)
    return lambda values: torch.bucketize(values, bounds, out_int32=True).to(torch.uint8)


def _count_below(values: Tensor, bounds: Sequence[Tensor]) -> Tensor:
    """How many of a few bounds are below each value, as bytes: `torch.bucketize`, but with vectors."""
    places = torch.full(values.shape, len(bounds), dtype=torch.uint8, device=values.device)
    reaches = torch.empty(values.shape, dtype=torch.bool, device=values.device)
    for bound in bounds:
        places -= torch.le(values, bound, out=reaches).view(torch.uint8)
    return places


def _find_bounds(ordered: Tensor) -> Tensor:
    return (ordered[:-1] + ordered[1:]) / 2


def _store(packed: Tensor, scheme: FourBitScheme) -> Tensor:
    dtype = torch_dtype(scheme.storage)
    if len(packed) % dtype.itemsize:
        raise ValueError(f"{len(packed)} bytes of codes do not fill whole words of {scheme.storage}")
    return packed.view(dtype)


def _describe(weight: Tensor, scheme: FourBitScheme, offset: Tensor | None) -> Tensor:
    """The document, filled up with zeros to one length, whatever the offset is."""
    known = None if offset is None else 0.0 if offset.is_meta else offset.item()
    text = write_state(scheme, tuple(weight.shape), str(weight.dtype).removeprefix("torch."), known).encode()
    return torch.tensor(list(text.ljust(DOCUMENT_BYTES, b"\0")), dtype=torch.uint8, device=weight.device)
