"""How a weight is stored, as the metadata of its safetensors file says it.

Source: torchao's `prototype/safetensors`: `flatten_tensor_state_dict` writes, for each parameter's name, the class of
its tensor, the attributes, and the names of the tensors that it was taken apart into.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from qload.checkpoint import TensorEntry
from qload_torchao.inputs import make_float8_inputs, read_inputs, read_intx_inputs
from qload_torchao.schemes import (
    FLOAT8,
    FP4,
    INT_DTYPES,
    MX_ELEMENTS,
    REQUIRED,
    Inputs,
    Storage,
    TorchaoScheme,
    check_element,
    settle,
)
from qload_torchao.values import ROW, TENSOR, Block, read_block, read_flag, read_size, read_word, untag

PLAIN = ("Tensor", "torch.Tensor")
PREFIX = "_weight_"
QDATA = f"{PREFIX}qdata"
KERNEL_LAYOUTS = ("Int4TilePackedTo4dTensor", "Int4PlainInt32Tensor", "Int4PreshuffledTensor", "IntxOpaqueTensor")
"""Whose order of values nothing says that is stored.

The first has one on NVIDIA's devices and another on AMD's, in tensors of the same names, dtypes and shapes
(`_convert_weight_to_int4pack_cuda` of PyTorch's int4mm.cu), as the second has on Intel's and Ascend's.
"""
FLOAT_DTYPES = ("float32", "bfloat16", "float16")

Fields = Mapping[str, Any]


def read_scheme(text: str, tensors: Mapping[str, TensorEntry]) -> TorchaoScheme | None:
    """The scheme of a weight that is described so; None for a plain tensor.

    `tensors` are those stored below its module. Raises ValueError for what is not supported.
    """
    scheme = _read(text, frozenset(leaf.removeprefix(PREFIX) for leaf in tensors if leaf.startswith(PREFIX)))
    if scheme is None:
        return None
    return replace(scheme, block=find_whole(scheme.block, scheme.storage, tensors.get(QDATA)))


# Weights of the same place in other layers are described alike, and there may be tens of thousands.
@lru_cache(maxsize=1024)
def _read(text: str, stored: frozenset[str]) -> TorchaoScheme | None:
    described = _parse(text)
    name, fields = untag(described)
    if name in PLAIN:
        return None
    storage = check_storage(name)
    names = _names(described.get("_tensor_data_names"), stored) - REQUIRED
    return replace(settle(_READERS[storage](fields), names), dtype=_dtype(fields))


def check_storage(name: str) -> Storage:
    """The storage of that tensor class. Raises ValueError for one that is not supported."""
    if name in KERNEL_LAYOUTS:
        raise ValueError(f"a {name} is packed for one device's kernel, and is not supported")
    if name not in (each.value for each in Storage):
        raise ValueError(f"the tensor class {name[:60]!r} is not one of {', '.join(Storage)}")
    return Storage(name)


def find_whole(block: Block, storage: Storage, values: TensorEntry | None) -> Block:
    """The block, with None for all rows or columns of the weight, since parts of one layer may differ in size."""
    if values is None or len(values.shape) != 2 or None in block:
        return block
    rows, columns = values.shape
    columns *= 2 if values.dtype == "U8" and storage in (Storage.MX, Storage.NVFP4) else 1
    if block == (rows, columns):
        return TENSOR if rows > 1 else ROW
    if block == (rows, 1):
        return (None, 1)
    return ROW if block == (1, columns) else block


def _parse(text: str) -> Fields:
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("the metadata of the weight is not JSON") from error
    if not isinstance(described, dict):
        raise ValueError("the metadata of the weight is not a JSON object")
    return described


def _names(names: object, stored: frozenset[str]) -> frozenset[str]:
    """The tensors that a weight was taken apart into; torchao 0.15 does not name them."""
    if names is None:
        return stored
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the metadata of the weight does not name its tensors")
    return frozenset(names)


def _dtype(fields: Fields) -> str:
    dtype = read_word(fields.get("dtype", fields.get("orig_dtype")), "bfloat16")
    if dtype not in FLOAT_DTYPES:
        raise ValueError(f"the weight's own dtype {dtype[:60]!r} is not one of {', '.join(FLOAT_DTYPES)}")
    return dtype


def _int8(fields: Fields) -> TorchaoScheme:
    inputs = read_inputs(fields.get("act_quant_kwargs"), Storage.INT8)
    return TorchaoScheme(Storage.INT8, "int8", read_block(fields.get("block_size")), inputs=inputs)


def _intx(fields: Fields) -> TorchaoScheme:
    element = check_element(fields.get("target_dtype"), "", INT_DTYPES)
    inputs = read_intx_inputs(fields.get("activation_quantization"))
    return TorchaoScheme(Storage.INTX, element, read_block(fields.get("block_size")), inputs=inputs)


def _int4(fields: Fields) -> TorchaoScheme:
    block = read_block(fields.get("block_size"))
    if block[0] != 1:
        raise ValueError(f"a {Storage.INT4} by blocks of {block} is not supported")
    dtype = read_word(fields.get("activation_dtype"), "bfloat16")
    return TorchaoScheme(Storage.INT4, "int4", block, inputs=make_int4_inputs(dtype))


def make_int4_inputs(dtype: str) -> Inputs | None:
    """The inputs of a weight of four bits, by its `activation_dtype`. Raises ValueError for what is not supported."""
    return None if dtype in FLOAT_DTYPES else make_float8_inputs(dtype, ROW, None, None)


def _float8(fields: Fields) -> TorchaoScheme:
    inputs = read_inputs(fields.get("act_quant_kwargs"), Storage.FLOAT8)
    written = fields.get("block_size")
    # Without one, or with an empty one, a scale is the whole tensor's.
    block = read_block(written) if written else TENSOR
    return TorchaoScheme(Storage.FLOAT8, FLOAT8, block, inputs=inputs)


def _mx(fields: Fields) -> TorchaoScheme:
    return TorchaoScheme(
        Storage.MX,
        check_element(fields.get("elem_dtype"), "", MX_ELEMENTS),
        (1, read_size(fields.get("block_size"))),
        inputs=read_inputs(fields.get("act_quant_kwargs"), Storage.MX),
        swizzled=read_flag(fields.get("is_swizzled_scales")),
    )


def _nvfp4(fields: Fields) -> TorchaoScheme:
    return TorchaoScheme(
        Storage.NVFP4,
        FP4,
        (1, read_size(fields.get("block_size"))),
        inputs=read_inputs(fields.get("act_quant_kwargs"), Storage.NVFP4),
        swizzled=read_flag(fields.get("is_swizzled_scales")),
    )


_READERS = {
    Storage.INT8: _int8,
    Storage.INTX: _intx,
    Storage.INT4: _int4,
    Storage.FLOAT8: _float8,
    Storage.MX: _mx,
    Storage.NVFP4: _nvfp4,
}
