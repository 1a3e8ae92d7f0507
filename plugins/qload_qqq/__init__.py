"""QQQ: 4-bit weights for int8 activations, stored in the order in which its kernel reads them.

A tile of 16 input and 64 output features lies together. With groups, a value times its group's scale is rounded to
int8, and that times the scale of its row is the weight; without, a value is multiplied by 16 first. Source of the
layout: `QQQLinear.pack` and `QQQTorchLinear` of GPTQModel.
"""

from dataclasses import dataclass

from qload.declare import ParameterSpec, channel_scale, group_scale, metadata, packed
from qload.geometry import Geometry, Kind
from qload.hookspecs import Capabilities, MethodInfo, ModuleInfo, Tile
from qload.layout import fixed, in_, out
from qload_qqq.config import QqqConfig

BITS = 4
TILE = 16
"""The input features, and the output features, of a tile."""
ROWS, ROWS_OF_CHANNELS = 64, 32
"""The output features that are reordered among themselves: those of four tiles, and their scales by row."""
LEAVES = frozenset({"B", "s_channel", "s_group"})


@dataclass(frozen=True, slots=True)
class QqqScheme:
    """Group size; None for scales by row alone."""

    group_size: int | None

    def __str__(self) -> str:
        return f"int{BITS} {f'group {self.group_size}' if self.group_size else 'channel'}, inputs dynamic int8"


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="4 bits by group or row; int8 inputs",
        config=QqqConfig,
        capabilities=Capabilities(
            embedding=True, activations=True, tensor_parallel=f"whole groups and tiles of {TILE} columns; {ROWS} rows"
        ),
        runtime="qload_qqq.runtime",
        is_by_place=True,
        side_files=("quantize_config.json",),
    )


def qload_scheme_for(config: QqqConfig, module: ModuleInfo) -> QqqScheme | None:
    if not _is_quantized(config, module):
        return None
    if config.bits != BITS:
        raise ValueError(f"{config.bits} bits are not {BITS}")
    return QqqScheme(config.group_size if config.group_size > 0 else None)


def qload_create_weights(scheme: QqqScheme, geometry: Geometry) -> tuple[ParameterSpec, ...]:
    tiles = packed("B", in_(TILE), out(ROWS, ROWS * TILE // 8), dtypes=("I32",))
    rows = channel_scale("s_channel", fixed(1), out(ROWS_OF_CHANNELS, ROWS_OF_CHANNELS), dtypes=("F32",))
    if scheme.group_size is None or scheme.group_size == geometry.in_features:
        return tiles, rows, metadata("s_group", fixed(0), dtypes=("F16",))
    return tiles, rows, group_scale("s_group", in_(scheme.group_size), out(ROWS, ROWS), dtypes=("F16",))


def qload_tile(kind: Kind) -> Tile | None:
    """Source: the least numbers of threads of QQQ's own variant of Marlin, as vLLM's `QQQConfig` has them."""
    return None if kind is Kind.EXPERTS else Tile(ROWS, 128, "QQQ's kernel")


def _is_quantized(config: QqqConfig, module: ModuleInfo) -> bool:
    """The config names no modules: the checkpoint itself says which are quantized, where it stores them."""
    is_named = module.kind is Kind.LINEAR or (module.kind is Kind.LM_HEAD and config.lm_head)
    return module.stores(LEAVES, otherwise=is_named)
