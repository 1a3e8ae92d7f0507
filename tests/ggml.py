"""GGUF files for tests: the goldens that llama.cpp's converters wrote, and others made from them by gguf-py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType, GGUFWriter, quants

GOLDENS = Path(__file__).parent / "goldens" / "gguf"
_OWN = ("GGUF.", "general.architecture")

Choice = Callable[[str, np.ndarray[Any, Any]], Type | None]
"""The type of a tensor by its name and values; None leaves it out."""


def rewrite(
    source: Path,
    out: Path,
    choose: Choice,
    *,
    changes: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray[Any, Any]] | None = None,
    dense: bool = False,
    split: int = 0,
) -> None:
    """Write a file anew, with tensors of the chosen types, and metadata with the `changes`, None to leave one out.

    With `dense`, its tensors hold the values that those types would, in float32. `extra` tensors come after its own.
    `split` tensors go to one file.
    """
    reader = GGUFReader(source)
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()), split_max_tensors=split)
    _write_metadata(reader, writer, changes or {})
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        kind = choose(tensor.name, values)
        if kind is None:
            continue
        data = quants.quantize(values, kind)
        if dense:
            writer.add_tensor(tensor.name, quants.dequantize(data, kind).reshape(values.shape))
        else:
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_metadata(reader: GGUFReader, writer: GGUFWriter, changes: dict[str, Any]) -> None:
    for key, field in reader.fields.items():
        if key.startswith(_OWN) or changes.get(key, field) is None:
            continue
        value = changes.get(key, field.contents())
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, field.types[0], inner)
    for key in changes.keys() - reader.fields.keys():
        kinds = {float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING, int: GGUFValueType.UINT32}
        writer.add_key_value(key, changes[key], kinds[type(changes[key])])


def keep(name: str, values: np.ndarray[Any, Any]) -> Type:  # noqa: ARG001
    """Every tensor in float32."""
    return Type.F32


def matrices(kind: Type) -> Choice:
    """Every matrix of that type, but for the routers of experts; vectors in float32."""

    def choose(name: str, values: np.ndarray[Any, Any]) -> Type:
        block = gguf.GGML_QUANT_SIZES[kind][0]
        return Type.F32 if values.ndim < 2 or "_inp" in name or values.shape[-1] % block else kind

    return choose


def read_tensor(path: Path, name: str) -> np.ndarray[Any, Any]:
    """The values of one tensor."""
    tensor = next(each for each in GGUFReader(path).tensors if each.name == name)
    values: np.ndarray[Any, Any] = quants.dequantize(tensor.data, tensor.tensor_type)
    return values.reshape([int(size) for size in reversed(tensor.shape)])
