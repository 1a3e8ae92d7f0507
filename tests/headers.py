"""Checkpoints of which only the config and the headers are there: sizes of real models without their data."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from qload.dtypes import storage_bytes

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""dtype and shape by a tensor's name."""


def write_headers(folder: Path, config: Mapping[str, Any], tensors: Shapes) -> Path:
    table, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + storage_bytes(dtype, prod(shape))
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(table).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", **config}))
    return folder
