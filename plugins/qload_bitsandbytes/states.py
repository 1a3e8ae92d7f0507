"""The document beside each 4-bit weight: what it has to say, and what is wrong with one that says something else.

Source: bitsandbytes' `QuantState.as_dict(packed=True)` and `pack_dict_to_tensor`, which write JSON as bytes.
"""

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from qload.findings import Finding, report
from qload.geometry import Geometry
from qload_bitsandbytes.rules import CONTRADICTORY, UNREADABLE
from qload_bitsandbytes.schemes import FourBitScheme

DOCUMENT_BYTES = 512
"""Those that are written are a third as long."""
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""The dtypes that weights are dequantized into, with their codes."""


class QuantState(BaseModel):
    """What the document says."""

    quant_type: str
    blocksize: int
    dtype: Literal["float16", "bfloat16", "float32"]
    shape: tuple[int, ...]
    nested_blocksize: int | None = None
    nested_dtype: str | None = None
    nested_offset: float | None = None


def write_state(scheme: FourBitScheme, shape: tuple[int, ...], dtype: str, offset: float | None) -> str:
    """The document of a weight of that scheme and shape, in the order of bitsandbytes' keys."""
    said: dict[str, Any] = {"quant_type": scheme.quant_type, "blocksize": scheme.block_size}
    said |= {"dtype": dtype, "shape": list(shape)}
    if scheme.nested is not None:
        said |= {"nested_blocksize": scheme.nested, "nested_dtype": "float32", "nested_offset": offset}
    return json.dumps(said)


def read_state(raw: bytes, where: str) -> QuantState | Finding:
    """What the bytes say, up to the zeros after them; a finding where that cannot be read."""
    try:
        return QuantState.model_validate_json(raw.rstrip(b"\0"))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        reason = f"{place}: {fault['msg']}" if place else str(fault["msg"])
        return report(UNREADABLE, "the quantization state cannot be read", where=where, found=reason, remedy=_REMEDY)


def check_state(state: QuantState, scheme: FourBitScheme, geometry: Geometry, where: str) -> Iterator[Finding]:
    """A finding for everything in which the document contradicts the tensors beside it, or the layer."""
    for key, (expected, agrees) in _compare(state, scheme, geometry).items():
        if not agrees:
            yield report(
                CONTRADICTORY,
                f"{key} of the quantization state contradicts the layer",
                where=where,
                expected=str(expected),
                found=str(getattr(state, key)),
                remedy=_REMEDY,
            )


_REMEDY = "the checkpoint is damaged, or was put together from others"


def _compare(state: QuantState, scheme: FourBitScheme, geometry: Geometry) -> Mapping[str, tuple[object, bool]]:
    """By key, what is expected, and whether the document agrees; sizes of blocks of which there is one are all one."""
    shape = (geometry.out_features, geometry.in_features)
    count = shape[0] * shape[1]
    blocks = -(-count // scheme.block_size)
    facts: dict[str, tuple[object, bool]] = {
        "quant_type": (scheme.quant_type, state.quant_type == scheme.quant_type),
        "shape": (shape, state.shape == shape),
        "blocksize": (scheme.block_size, _is_same_cut(count, state.blocksize, scheme.block_size)),
    }
    offset = state.nested_offset
    if scheme.nested is None:
        return facts | {"nested_offset": (None, offset is None)}
    return facts | {
        "nested_blocksize": (scheme.nested, _is_same_cut(blocks, state.nested_blocksize or 0, scheme.nested)),
        "nested_dtype": ("float32", state.nested_dtype == "float32"),
        "nested_offset": ("a finite number", offset is not None and isfinite(offset)),
    }


def _is_same_cut(count: int, size: int, other: int) -> bool:
    """Whether so many elements are in the same blocks of either size."""
    return size == other or (size >= count and other >= count)
