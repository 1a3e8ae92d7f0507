"""Peak host memory and time of quantizing a plain Llama while it is loaded, beside transformers with its packages.

    python benchmarks/quantize_load.py [--layers 16] [--rounds 3] [--json FILE]

Every way runs in a fresh process, on the CPU. Memory is anonymous memory above what the process holds after its
imports. Peers: `pip install -e ".[bench]"`; one that is not installed is left out, and said to be.
"""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from load_memory import HIDDEN, LINEAR, PACKAGES, VOCABULARY, make_config, outer_tensors, spread
from machine import describe_machine, measure_load
from memory import Watch, status
from safetensors.torch import save_file

GREATEST = max(rows * columns for rows, columns in LINEAR.values()) * 2
"""The bytes of the greatest weight that is quantized."""
PEERS = ("torchao", "bitsandbytes", "accelerate")
PRESETS = ("int8", "int4", "fp8", "nf4", "nvfp4")


def make_plain_checkpoint(folder: Path, layers: int) -> int:
    """Write a checkpoint of random values, a file for every four layers; returns its bytes."""
    placed: dict[str, str] = {}
    total = 0
    for first in range(0, layers, 4):
        tensors = {} if first else outer_tensors()
        for layer in range(first, min(first + 4, layers)):
            name = f"model.layers.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{name}.{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
            for leaf, shape in LINEAR.items():
                tensors[f"{name}.{leaf}.weight"] = torch.randn(shape, dtype=torch.bfloat16) / 50
        file = f"model-{first // 4 + 1:05}-of-{-(-layers // 4):05}.safetensors"
        save_file(tensors, folder / file)
        placed |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    config = {key: value for key, value in make_config(layers).items() if key != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config))
    return total


def prepare_qload(folder: Path, preset: str | None) -> Callable[[], Any]:
    load = importlib.import_module("qload").load
    importlib.import_module("transformers.models.llama.modeling_llama")
    return lambda: load(folder, quantization=preset)


def prepare_torchao(folder: Path) -> Callable[[], Any]:
    transformers = importlib.import_module("transformers")
    config = transformers.TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())
    return prepare_transformers(folder, config)


def prepare_bitsandbytes(folder: Path) -> Callable[[], Any]:
    importlib.import_module("bitsandbytes")
    config = importlib.import_module("transformers").BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return prepare_transformers(folder, config)


def prepare_transformers(folder: Path, config: Any) -> Callable[[], Any]:
    importlib.import_module("accelerate")
    importlib.import_module("transformers.models.llama.modeling_llama")
    load = importlib.import_module("transformers").AutoModelForCausalLM.from_pretrained
    return lambda: load(folder, quantization_config=config, dtype=torch.bfloat16, device_map="cpu")


def list_ways() -> dict[str, Callable[[Path], Callable[[], Any]]]:
    """The ways that the machine at hand allows."""
    presets = importlib.import_module("qload.presets").list_presets(
        importlib.import_module("qload").Registry.discover()
    )
    ways: dict[str, Callable[[Path], Callable[[], Any]]] = {
        "qload.load, dense": lambda folder: prepare_qload(folder, None),
        **{
            f"qload.load({preset})": (lambda folder, preset=preset: prepare_qload(folder, preset))
            for preset in PRESETS
            if preset in presets
        },
    }
    peers = {
        "torchao": ("transformers + torchao int8", prepare_torchao),
        "bitsandbytes": ("transformers + bitsandbytes nf4", prepare_bitsandbytes),
    }
    for package, (way, prepare) in peers.items():
        if importlib.util.find_spec(package) and importlib.util.find_spec("accelerate"):
            ways[way] = prepare
        else:
            print(f"not measured: {way}, which is not installed", file=sys.stderr)
    return ways


def measure(way: str, folder: Path) -> dict[str, float]:
    load = list_ways()[way](folder)
    before = status("RssAnon")
    watch = Watch()
    watch.start()
    started = time.perf_counter()
    model = load()
    seconds = time.perf_counter() - started
    stays, peak = status("RssAnon") - before, watch.take() - before
    tensors = {each.data_ptr(): each for each in (*model.parameters(), *model.buffers())}
    held = sum(each.nbytes for each in tensors.values()) if way.startswith("qload") else stays
    return {"seconds": seconds, "stays": stays, "peak": max(peak, stays), "held": held}


def show(found: dict[str, list[dict[str, float]]], total: int) -> None:
    print(
        f"plain checkpoint: {total / 1e6:.0f} MB, greatest weight {GREATEST / 1e6:.0f} MB; median (least to greatest)\n"
    )
    print("| way | s | stays, of the plain bytes | peak above what stays, MB |")
    print("|---|---|---|---|")
    for way, runs in found.items():
        above = spread([each["peak"] - each["stays"] for each in runs], 1e6, 1)
        seconds, stays = spread([each["seconds"] for each in runs], 1, 2), spread([r["stays"] for r in runs], total, 3)
        print(f"| {way} | {seconds} | {stays} | {above} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder)))
        return
    since = measure_load()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in list_ways()}
    with tempfile.TemporaryDirectory() as name:
        total = make_plain_checkpoint(Path(name), arguments.layers)
        for number in range(arguments.rounds + 1):
            for way, runs in found.items():
                command = [sys.executable, __file__, "--measure", way, "--folder", name]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
                if number:  # the first round warms the page cache
                    runs.append(json.loads(done.stdout.splitlines()[-1]))
    show(found, total)
    if arguments.json:
        kept = {
            "machine": describe_machine((*PACKAGES, *PEERS), since=since),
            "bytes": total,
            "vocabulary": VOCABULARY,
            "runs": found,
        }
        arguments.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
