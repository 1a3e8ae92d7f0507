"""Makes compressed_tensors.safetensors with compressed-tensors 0.13.0, the last version that writes these formats.

Run it with that version before any other on the path: `PYTHONPATH=FOLDER python make_compressed_tensors.py`, after
`pip install --no-deps --target FOLDER compressed-tensors==0.13.0`. Every case has what is stored, below its name, and
`dense`, what its producer's decoder makes of it; or, for marlin-24, which has no decoder, the values that it was given.
"""

from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask import get_24_bytemasks
from compressed_tensors.config import Sparse24BitMaskConfig
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from torch import Tensor

DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}


def make_weight(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        # The least value has no size of its own in this dtype, and gets lost.
        return torch.randint(-127, 128, (rows, columns), dtype=dtype)
    return torch.randn(rows, columns).to(dtype)


def keep(weight: Tensor, mask: Tensor) -> Tensor:
    if weight.element_size() > 1:
        return weight * mask
    return torch.where(mask, weight.view(torch.int8), 0).view(weight.dtype)


def sparse(form: str, name: str, rows: int, columns: int) -> dict[str, Tensor]:
    weight = make_weight(rows, columns, DTYPES[name])
    halves = form == "sparse-24-bitmask"
    weight = keep(weight, get_24_bytemasks(weight) if halves else torch.rand(rows, columns) < 0.4)
    config = Sparse24BitMaskConfig() if halves else None
    compressor = BaseCompressor.load_from_registry(form, config=config)
    stored = {key.removeprefix("m."): value for key, value in compressor.compress({"m.weight": weight}).items()}
    names = compressor.compression_param_names
    dense = compressor.decompress_weight({key: stored[key] for key in names})
    assert torch.equal(dense.float(), weight.float())
    return {**stored, "dense": dense}


def marlin(bits: int, group: int | None, rows: int, columns: int) -> dict[str, Tensor]:
    extent = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, **extent)
    weight = torch.randn(rows, columns)
    weight = keep(weight, get_24_bytemasks(weight)).half()
    tiles = weight.unflatten(-1, (-1, group or columns))
    scale, zero = calculate_qparams(tiles.amin(-1), tiles.amax(-1), args)
    state = {"m.weight": weight, "m.weight_scale": scale, "m.weight_zero_point": zero}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.load_from_registry("marlin-24")
    stored = {key.removeprefix("m."): value for key, value in compressor.compress(state, {"m": scheme}).items()}
    return {**stored, "dense": fake_quantize(weight, scale, zero, args)}


def main() -> None:
    torch.manual_seed(0)
    cases = {f"sparse-24-bitmask.{name}": sparse("sparse-24-bitmask", name, 6, 20) for name in DTYPES}
    cases |= {f"sparse-bitmask.{name}": sparse("sparse-bitmask", name, 7, 19) for name in DTYPES}
    for bits, group, rows, columns in (
        (4, 128, 64, 128),
        (4, 128, 64, 256),
        (4, 128, 64, 384),
        (4, None, 64, 96),
        (8, 128, 64, 128),
        (8, None, 128, 32),
    ):
        cases[f"marlin-24.{bits}-{group}-{rows}x{columns}"] = marlin(bits, group, rows, columns)
    tensors = {f"{case}.{key}": value.contiguous() for case, stored in cases.items() for key, value in stored.items()}
    save_file(tensors, Path(__file__).with_name("compressed_tensors.safetensors"))


if __name__ == "__main__":
    main()
