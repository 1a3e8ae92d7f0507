"""Quantizes as torchao does, to integers and eight-bit floats, by the least and greatest value of each block.

Source of the arithmetic: torchao's `_choose_qparams_affine`, `_quantize_affine`, `_choose_scale_float8`,
`_quantize_affine_float8`, and how `Int8Tensor`, `IntxUnpackedToInt8Tensor` and `Float8Tensor` call them.
"""

import torch
from torch import Tensor

from qload.torch.strips import quantize_by_strips
from qload_torchao.schemes import FLOAT8_DTYPES, INPUT_SCALE, Storage, TorchaoScheme

_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", *FLOAT8_DTYPES)}
_FLOATS = tuple(_DTYPES)[:3]
_MAPPINGS = ("SYMMETRIC", "SYMMETRIC_NO_CLIPPING_ERR", "ASYMMETRIC")


def quantize(weight: Tensor, scheme: TorchaoScheme) -> dict[str, Tensor]:
    """The tensors of one of three classes. Raises ValueError for the others, and for what has no whole blocks."""
    _check(weight, scheme)
    make = _quantize_floats if scheme.storage is Storage.FLOAT8 else _quantize_integers
    if scheme.block[0] is None:
        return make(weight, scheme)
    return quantize_by_strips(weight, scheme.block[0], lambda strip: make(strip, scheme))


def _check(weight: Tensor, scheme: TorchaoScheme) -> None:
    making = scheme.making
    if scheme.storage not in (Storage.INT8, Storage.INTX, Storage.FLOAT8):
        raise ValueError(f"{scheme.storage} is not supported")
    if INPUT_SCALE in scheme.tensors:
        raise ValueError("the scales of static inputs need calibration data")
    if making.algorithm != "AFFINE":
        raise ValueError(f"the algorithm {making.algorithm[:60]!r} is not supported")
    if making.mapping not in _MAPPINGS or making.values not in FLOAT8_DTYPES:
        raise ValueError(f"{making.values[:60]!r} values of mapping type {making.mapping[:60]!r} are not supported")
    if making.scale is not None and making.scale not in _FLOATS:
        raise ValueError(f"scales of {making.scale[:60]!r} are not one of {', '.join(_FLOATS)}")
    if weight.dtype not in [_DTYPES[name] for name in _FLOATS]:
        raise ValueError(f"weights of {str(weight.dtype).removeprefix('torch.')} are not of {', '.join(_FLOATS)}")
    if any(size % (unit or size) for size, unit in zip(weight.shape, scheme.block, strict=True)):
        raise ValueError(f"{weight.shape[0]} x {weight.shape[1]} are not whole blocks of {scheme.block}")


def _tile(weight: Tensor, scheme: TorchaoScheme) -> Tensor:
    """[rows / height, height, columns / width, width]: one scale serves a tile of height x width."""
    height, width = (unit or size for size, unit in zip(weight.shape, scheme.block, strict=True))
    tiles: Tensor = weight.unflatten(1, (-1, width)).unflatten(0, (-1, height))
    return tiles


def _quantize_floats(weight: Tensor, scheme: TorchaoScheme) -> dict[str, Tensor]:
    """A block of zeros has no scale, and stays zero."""
    tiles, dtype = _tile(weight, scheme), _DTYPES[scheme.making.values]
    greatest = torch.finfo(dtype).max
    scale = (tiles.abs().amax((1, 3), keepdim=True) / greatest).float()
    values = (tiles.float() / torch.where(scale == 0, 1, scale)).clamp_(-greatest, greatest).to(dtype)
    return {"weight_quantized": values.view(weight.shape), "weight_scale": scale.amax((1, 3))}


def _quantize_integers(weight: Tensor, scheme: TorchaoScheme) -> dict[str, Tensor]:
    """Int8Tensor has scales in float32, IntxUnpackedToInt8Tensor in the weight's dtype unless it is told another."""
    tiles, making = _tile(weight, scheme), scheme.making
    is_int8 = scheme.storage is Storage.INT8
    half = 1 << (int(scheme.element.removeprefix("int")) - 1)
    least, greatest = (-half // 2, (half - 1) // 2) if making.reduced else (-half, half - 1)
    epsilon = torch.finfo(torch.float32).eps if is_int8 else torch.finfo(weight.dtype).smallest_normal
    scale, zero = _choose_scales(tiles, making.mapping, least, greatest, epsilon)
    wanted = "float32" if is_int8 else making.scale
    scale = scale if wanted is None else scale.to(_DTYPES[wanted])
    values = (tiles * (1 / scale)).round_().add_(zero).clamp_(least, greatest).to(torch.int8)
    return {
        "weight_quantized": values.view(weight.shape),
        "weight_scale": scale.amax((1, 3)),
        "weight_zero_point": zero.amax((1, 3)),
    }


def _choose_scales(tiles: Tensor, mapping: str, least: int, greatest: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Scales in the weight's dtype and zero-points in int8 of tiles, by one of torchao's mapping types."""
    low = tiles.amin((1, 3), keepdim=True).clamp_max(0)
    high = tiles.amax((1, 3), keepdim=True).clamp_min(0)
    if mapping == "ASYMMETRIC":
        scale = ((high - low) / (greatest - least)).clamp_min(epsilon)
        zero = (least - (low / scale).round()).clamp(least, greatest)
        return scale, zero.to(torch.int8)
    if mapping == "SYMMETRIC":
        scale = torch.maximum(-low, high) / ((greatest - least) / 2)
    else:
        scale = torch.maximum(low / least, high / greatest)
    return scale.clamp_min(epsilon), torch.zeros_like(scale, dtype=torch.int8)
