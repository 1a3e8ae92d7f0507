"""bitsandbytes: 4-bit codes of NF4 and FP4 in blocks, with scales that may be quantized again, and int8 by rows.

Four bits are stored flat, over the rows' ends: two codes to a byte, the first in the high bits. What headers do not
say stands in a document of JSON beside each weight. Source of the layout: bitsandbytes' `QuantState.as_dict`,
`quantize_4bit`, `dequantize_4bit`, and `Linear8bitLt`.
"""

from collections.abc import Mapping
from math import gcd
from typing import Any

from qload.catalogue import Rule
from qload.configs import find_section
from qload.declare import ParameterSpec, View, channel_scale, document, group_scale, index, packed, table
from qload.dtypes import SCALE_DTYPES
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo, Parts, Tile
from qload.layout import Axis, in_, out, part
from qload_bitsandbytes.config import BitsAndBytesConfig
from qload_bitsandbytes.presets import PRESETS
from qload_bitsandbytes.rules import RULES
from qload_bitsandbytes.schemes import (
    ABSMAX,
    NESTED_ABSMAX,
    ROW_SCALE,
    STATE,
    WEIGHT,
    FourBitScheme,
    Int8Scheme,
    choose_four_bits,
)
from qload_bitsandbytes.states import DOCUMENT_BYTES, write_state

FLAGS = ("load_in_4bit", "load_in_8bit")
FORMATS = ("row", "col32", "col_turing", "col_ampere")
"""The layouts of int8 weights by the number that is stored, of which bitsandbytes itself reads the first alone."""


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="NF4 and FP4, doubly quantized or not; LLM.int8()",
        config=BitsAndBytesConfig,
        capabilities=Capabilities(
            embedding=True,
            parts=Parts.ANY,
            activations=True,
            quantize=True,
            tensor_parallel="whole blocks, and blocks of blocks; int8: any unit",
        ),
        runtime="qload_bitsandbytes.runtime",
        is_by_place=True,
        presets=PRESETS,
    )


def qload_claim(config: Mapping[str, Any]) -> Claim | None:
    """Configs of the first versions of transformers have the flags, and name no method."""
    section = find_section(config)
    if not isinstance(section, Mapping) or not any(section.get(flag) is True for flag in FLAGS):
        return None
    return Claim(10, section)


def qload_rules() -> tuple[Rule, ...]:
    return RULES


def qload_scheme_for(config: BitsAndBytesConfig, module: ModuleInfo) -> FourBitScheme | Int8Scheme | None:
    if config.excludes(module.names) or not _is_quantized(config, module):
        return None
    if config.load_in_4bit:
        _refuse(module, ROW_SCALE, "the config says 4 bits, and the module is stored in int8")
        return choose_four_bits(config, module)
    _refuse(module, ABSMAX, "the config says int8, and the module is stored in 4 bits")
    return Int8Scheme(config.llm_int8_threshold)


def qload_create_weights(scheme: FourBitScheme | Int8Scheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    if isinstance(scheme, Int8Scheme):
        return (
            # Under another name on the layer than on disk: what asks a layer for its weight means the dense one.
            packed("weight_quantized", out(), in_(), dtypes=("I8",), stored_as=WEIGHT),
            channel_scale("row_scale", out(), stored_as=ROW_SCALE),
            index("weight_format", part(), bounds=(0, len(FORMATS)), dtypes=("U8",), required=False),
        )
    columns = geometry.in_features
    values = _axes(scheme, columns, scheme.packing)
    blocks = _axes(scheme, columns, scheme.block_size)
    dtypes = SCALE_DTYPES if scheme.nested is None else ("U8",)
    sample = write_state(scheme, (geometry.out_features, columns), "float32", 0.125)
    specs = [
        packed("weight_quantized", *values, dtypes=(scheme.storage,), stored_as=WEIGHT, view=View.FLAT),
        group_scale("absmax", *blocks, dtypes=dtypes, stored_as=ABSMAX, view=View.FLAT),
        table("quant_map", 16, stored_as="weight.quant_map"),
        document("quant_state", DOCUMENT_BYTES, sample, stored_as=STATE + scheme.quant_type),
    ]
    if scheme.nested is not None:
        # The blocks of blocks go on from row to row: a rank with some of the columns needs all of them.
        outer = (_flat_axis(columns, scheme.nested_size, scheme.nested_size), in_(columns, whole=True))
        specs += [
            group_scale("nested_absmax", *outer, dtypes=("F32",), stored_as=NESTED_ABSMAX, view=View.FLAT),
            table("nested_quant_map", 256, stored_as="weight.nested_quant_map"),
        ]
    return tuple(specs)


def qload_kernels() -> tuple[str, ...]:
    return ("qload_bitsandbytes.kernels.cpu:CpuCodebook", "qload_bitsandbytes.kernels.cuda:CudaCodebook")


def qload_tile(scheme: FourBitScheme | Int8Scheme) -> Tile | None:
    """Source: bitsandbytes' `matmul_4bit`, which warns of input features that are not whole blocks."""
    return Tile(1, scheme.block_size, "bitsandbytes' gemv") if isinstance(scheme, FourBitScheme) else None


def _is_quantized(config: BitsAndBytesConfig, module: ModuleInfo) -> bool:
    """The checkpoint itself says which modules are quantized, where it stores them.

    Elsewhere all linear layers, but for the head, unless the config lists what is left alone.
    """
    if module.stored:
        return ROW_SCALE in module.stored or any(leaf.startswith(f"{WEIGHT}.") for leaf in module.stored)
    if config.load_in_8bit and config.llm_int8_has_fp16_weight:
        return False
    return module.kind is Kind.LINEAR or (module.kind is Kind.LM_HEAD and config.llm_int8_skip_modules is not None)


def _refuse(module: ModuleInfo, leaf: str, reason: str) -> None:
    if leaf in module.stored:
        raise ValueError(reason)


def _axes(scheme: FourBitScheme, columns: int, elements: int) -> tuple[Axis, Axis]:
    """The axes of a tensor with an entry for so many elements: rows and columns where every row begins a block.

    Elsewhere only as many rows as make whole blocks can stay together, and no columns can be taken from them.
    """
    if scheme.is_aligned(columns):
        return out(), in_(elements)
    return _flat_axis(columns, elements, scheme.block_size), in_(columns)


def _flat_axis(columns: int, elements: int, block: int) -> Axis:
    """Rows in flat entries of so many elements, of which those stay together that make whole blocks."""
    rows = block // gcd(columns, block)
    return out(rows, rows * columns // elements)
