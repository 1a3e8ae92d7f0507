"""What storage formats share: unpacking values, and scaling them by group, block, channel or tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.layout import packing


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned values of `bits` bits (1 to 8) packed along the last axis without gaps, low bits first.

    words [..., n] of any integer dtype into uint8 [..., count]. A value may straddle words.
    """
    stream = words.contiguous().view(torch.uint8)
    if bits == 8:
        return stream[..., :count]
    if bits == 4:
        pairs = stream.to(torch.int16)
        return (pairs << 4).bitwise_or_(pairs).bitwise_and_(0x0F0F).view(torch.uint8)[..., :count]
    if 8 % bits == 0:
        places = [shift_right(stream, shift) & _mask(bits) for shift in range(0, 8, bits)]
        return torch.stack(places, -1).flatten(-2)[..., :count]
    return _unpack_runs(stream, bits, count)


def _unpack_runs(stream: Tensor, bits: int, count: int) -> Tensor:
    """Values that straddle bytes, of which every eight lie in as many bytes as they have bits."""
    runs = -(-count // 8)
    whole = F.pad(stream, (0, max(0, runs * bits - stream.shape[-1])))[..., : runs * bits]
    placed = whole.unflatten(-1, (runs, bits))
    values = torch.empty(*stream.shape[:-1], runs, 8, dtype=torch.uint8, device=stream.device)
    for place in range(8):
        first, shift = divmod(place * bits, 8)
        found = shift_right(placed[..., first], shift)
        if shift + bits > 8:
            found = found | torch.bitwise_left_shift(placed[..., first + 1], 8 - shift).to(torch.uint8)
        values[..., place] = found & _mask(bits)
    return values.flatten(-2)[..., :count]


def pack(values: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `unpack`: the low `bits` bits of each value, without gaps, low bits first, in words of `dtype`.

    values [..., n] of any integer dtype into [..., ceil(n * bits / the word's bits)]; the last word is filled up
    with zeros.
    """
    count, nbytes = packing(bits, 8)
    wide = torch.uint8 if nbytes == 1 else torch.int64
    runs = F.pad(values, (0, -values.shape[-1] % count)).unflatten(-1, (-1, count))
    joined = torch.zeros(runs.shape[:-1], dtype=wide, device=values.device)
    for place in range(count):
        joined |= (runs[..., place].to(wide) & _mask(bits)) << (place * bits)
    stream = joined.unsqueeze(-1).view(torch.uint8)[..., :nbytes].flatten(-2)
    size = -(-values.shape[-1] * bits // (8 * dtype.itemsize)) * dtype.itemsize
    return F.pad(stream, (0, max(0, size - stream.shape[-1])))[..., :size].contiguous().view(dtype)


def take(words: Tensor, bits: int, index: Tensor) -> Tensor:
    """The values at positions `index` [k] of what `unpack` would give: uint8 [..., k]."""
    stream = words.contiguous().view(torch.uint8)
    first = index * bits // 8
    second = (first + 1).clamp_max(stream.shape[-1] - 1)
    window = stream[..., first].to(torch.int32) | (stream[..., second].to(torch.int32) << 8)
    shifted = torch.bitwise_right_shift(window, (index * bits % 8).to(torch.int32))
    return (shifted & _mask(bits)).to(torch.uint8)


def find_places(index: Tensor, order: Sequence[int]) -> Tensor:
    """Where the values at positions `index` lie, each run of them shuffled: the first of a run is at `order[0]`."""
    places = write_out(order, index.device)
    return index - index % len(order) + places[index % len(order)]


def write_out(numbers: Sequence[int], device: torch.device) -> Tensor:
    """A few numbers from 0 on, int64 [n], on a device.

    They are in the code that runs there, as bits of words, and not copied from the host, which would wait for that:
    nor can a CUDA graph have such a copy.
    """
    width = max(number.bit_length() for number in numbers) or 1
    count = 63 // width
    found = []
    for first in range(0, len(numbers), count):
        run = numbers[first : first + count]
        word = sum(number << place * width for place, number in enumerate(run))
        shifts = torch.arange(0, len(run) * width, width, device=device)
        found.append(torch.bitwise_right_shift(torch.full_like(shifts, word), shifts) & _mask(width))
    return torch.cat(found)


def look_up_pairs(codes: Tensor, table: Tensor) -> Tensor:
    """The values [rows, 2n] in a table float32 [16] of bytes [rows, n] of two codes, the first in the high bits."""
    # A pair is looked up as one number, which takes a tenth of the time that two floats do.
    pairs = torch.cartesian_prod(table, table).view(torch.int64).flatten()
    found = pairs.index_select(0, codes.flatten().int())
    return found.view(torch.float32).view(len(codes), 2 * codes.shape[1])


def find_rows(rows: Tensor, columns: int) -> Tensor:
    """The positions of the values of some rows in a matrix made flat: int64 [len(rows), columns]."""
    return rows.unsqueeze(1) * columns + torch.arange(columns, device=rows.device)


def pick(stored: Tensor, rows: Tensor | None) -> Tensor:
    """Some rows, or all of them."""
    return stored if rows is None else stored[rows]


def extend_sign(values: Tensor, bits: int) -> Tensor:
    """Unsigned values of `bits` bits (1 to 8), uint8, read as two's complement: int8."""
    unused = 8 - bits
    return shift_right(torch.bitwise_left_shift(values, unused).to(torch.uint8).view(torch.int8), unused)


def unpack_striped(words: Tensor, bits: int, shifts: Sequence[int], count: int) -> Tensor:
    """Unsigned values packed in stripes: of n words, the first bits hold values 0 to n - 1, the next n to 2 n - 1.

    `shifts` are the places of the stripes in a word, the first stripe's first. uint8 [count].
    """
    flat, mask = words.flatten(), _mask(bits)
    stripes = [(shift_right(flat, shift) & mask).to(torch.uint8) for shift in shifts]
    return (stripes[0] if len(stripes) == 1 else torch.cat(stripes))[:count]


def pack_striped(values: Tensor, shifts: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The inverse of `unpack_striped` for rows of values, of which as many as there are shifts share words of `dtype`.

    values [rows, n] of any integer dtype into [ceil(rows / the number of shifts), n]; rows of zeros fill up.
    """
    count = -(-len(values) // len(shifts))
    stripes = F.pad(values, (0, 0, 0, count * len(shifts) - len(values))).view(len(shifts), count, -1)
    words = torch.zeros(stripes.shape[1:], dtype=dtype, device=values.device)
    for stripe, shift in zip(stripes, shifts, strict=True):
        words |= stripe.to(dtype) << shift
    return words


def take_striped(words: Tensor, bits: int, shifts: Sequence[int], index: Tensor) -> Tensor:
    """The values at positions `index` of what `unpack_striped` would give: uint8, in its shape."""
    flat = words.flatten()
    places = write_out(shifts, words.device).to(words.dtype)[index // len(flat)]
    return (torch.bitwise_right_shift(flat[index % len(flat)], places) & _mask(bits)).to(torch.uint8)


def scale_groups(
    values: Tensor,
    scale: Tensor,
    zero: Tensor | int,
    group: int,
    *,
    divide: bool = False,
    shift: Tensor | None = None,
) -> Tensor:
    """(values - zero) * scale + shift, computed in the scale's dtype, with a scale for every `group` columns.

    values [rows, columns]; scale, zero and shift [rows, groups]; the last group may be short. With `divide`, divided
    by the scale.
    """
    columns = values.shape[-1]
    if columns % group:
        zero = _spread(zero, group, columns) if isinstance(zero, Tensor) else zero
        shift = None if shift is None else _spread(shift, group, columns)
        return _scale(values, _spread(scale, group, columns), zero, divide, shift)
    grouped: Tensor = values.unflatten(-1, (columns // group, group))
    zero = zero.unsqueeze(-1) if isinstance(zero, Tensor) else zero
    shift = None if shift is None else shift.unsqueeze(-1)
    return _scale(grouped, scale.unsqueeze(-1), zero, divide, shift).flatten(-2)


def scale_by_index(values: Tensor, scale: Tensor, zero: Tensor | int, index: Tensor) -> Tensor:
    """As `scale_groups`, with the group of each column in `index` [columns]."""
    order = index.long()
    zero = zero[:, order] if isinstance(zero, Tensor) else zero
    return _scale(values, scale[:, order], zero)


def scale_blocks(
    values: Tensor,
    scale: Tensor,
    block: tuple[int, int],
    *,
    zero: Tensor | int = 0,
    divide: bool = False,
    rows: Tensor | None = None,
) -> Tensor:
    """(values - zero) * scale, computed in the scale's dtype, with a scale for every block of rows and columns.

    values [rows, columns], scale and zero [ceil(rows / block[0]), ceil(columns / block[1])]. With `divide`, divided
    by the scale. With `rows`, the values are those of these rows alone.
    """
    zero = _spread_rows(zero, block[0], len(values), rows) if isinstance(zero, Tensor) else zero
    return scale_groups(values, _spread_rows(scale, block[0], len(values), rows), zero, block[1], divide=divide)


def _spread_rows(scale: Tensor, block: int, count: int, rows: Tensor | None) -> Tensor:
    """The scales of each row; where all share one row of them, that."""
    if len(scale) == 1:
        return scale
    return scale.repeat_interleave(block, 0)[:count] if rows is None else scale[rows // block]


def _spread(scale: Tensor, group: int, columns: int) -> Tensor:
    return scale.repeat_interleave(group, -1)[..., :columns]


def _scale(
    values: Tensor, scale: Tensor, zero: Tensor | int, divide: bool = False, shift: Tensor | None = None
) -> Tensor:
    """(values - zero) * or / scale + shift in its dtype; in place once they are, for fresh memory costs the most."""
    dense = values.to(scale.dtype)
    if isinstance(zero, Tensor):
        dense = _own(dense, values).sub_(zero.to(scale.dtype))
    elif zero:
        dense = _own(dense, values).sub_(zero)
    if dense is values:
        dense = dense / scale if divide else dense * scale
    else:
        dense = dense.div_(scale) if divide else dense.mul_(scale)
    return dense if shift is None else dense.add_(shift.to(scale.dtype))


def _own(dense: Tensor, values: Tensor) -> Tensor:
    return dense.clone() if dense is values else dense


def shift_right(x: Tensor, count: int) -> Tensor:
    """Integers shifted right, with their sign, in their dtype.

    On XLA the operator rounds negative ones toward zero, and the function answers in int64.
    """
    return torch.bitwise_right_shift(x, count).to(x.dtype)


def _mask(bits: int) -> int:
    return (1 << bits) - 1
