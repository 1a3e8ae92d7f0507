"""Speed of validating all of a checkpoint's data, beside that of reading it, and of hashing it.

    python benchmarks/deep_speed.py [--layers 8] [--hidden 4096] [--rounds 3] [--json FILE]

The checkpoint is packed to 4 bits in groups of 128 by compressed-tensors' layout, of random bytes, in one file. The
ways take turns in one process, after a round that brings the file into the page cache. Reading and hashing go by
pieces of the size that validating reads; with a list of checksums beside the file, validating hashes it too.
"""

import argparse
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import describe_machine, measure_load
from timing import show, time_calls

import qload
from qload import Registry
from qload.dtypes import storage_bytes
from qload.validation.pieces import CHUNK

FILE = "model.safetensors"
GROUP = 128
INNER = 7 / 2
"""The inner size of a layer, as a multiple of the hidden one."""


def make_checkpoint(folder: Path, layers: int, hidden: int) -> None:
    entries, at = {}, 0
    for name, dtype, shape in list_tensors(layers, hidden):
        stop = at + storage_bytes(dtype, shape[0] * shape[-1] if len(shape) > 1 else shape[0])
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(entries).encode()
    with (folder / FILE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries.values():
            start, stop = entry["data_offsets"]
            write_numbers(file, entry["dtype"], stop - start)
    (folder / "config.json").write_text(json.dumps(make_config(layers, hidden)))


def list_tensors(layers: int, hidden: int) -> Iterator[tuple[str, str, list[int]]]:
    inner = int(hidden * INNER)
    shapes = {
        **{f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"},
        **{f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")},
        "mlp.down_proj": (hidden, inner),
    }
    for layer in range(layers):
        for module, (rows, columns) in shapes.items():
            name = f"model.layers.{layer}.{module}"
            yield f"{name}.weight_packed", "I32", [rows, columns // 8]
            yield f"{name}.weight_scale", "BF16", [rows, columns // GROUP]
            yield f"{name}.weight_shape", "I64", [2]


def write_numbers(file: Any, dtype: str, nbytes: int) -> None:
    """Random bytes for words, and for scales such as make floats below 2."""
    while nbytes:
        count = min(nbytes, 1 << 24)
        file.write(os.urandom(count) if dtype == "I32" else b"\x12\x3c" * (count // 2))
        nbytes -= count


def make_config(layers: int, hidden: int) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    group = {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128,
        "dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
        },
    }


def read(path: Path, use: Callable[[bytes], object]) -> None:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK):
            use(piece)


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    registry, path = Registry.discover(), folder / FILE
    sums = folder / "SHA256SUMS"

    def validate() -> None:
        if qload.validate(folder, registry=registry, deep=True).findings:
            raise SystemExit("the checkpoint was made wrongly: there are findings")

    ways: dict[str, Callable[[], object]] = {
        "read": lambda: read(path, len),
        "sha256": lambda: read(path, hashlib.sha256().update),
        "qload.validate(deep=True)": validate,
    }
    found = time_calls(ways, rounds)
    with path.open("rb") as file:
        sums.write_text(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {FILE}\n")
    return found | time_calls({"qload.validate(deep=True), with checksums": validate}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    since = measure_load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder, arguments.layers, arguments.hidden)
        nbytes = (folder / FILE).stat().st_size
        found = measure(folder, arguments.rounds)
    print(f"{nbytes / 1e9:.2f} GB; medians (least to greatest)")
    show(("what", "s", "GB/s"), found, lambda seconds: f"{nbytes / seconds / 1e9:.2f}", ".2f")
    if arguments.json:
        machine = describe_machine(("numpy",), since=since)
        arguments.json.write_text(json.dumps({"machine": machine, "nbytes": nbytes, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
