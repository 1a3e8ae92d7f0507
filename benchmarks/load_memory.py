"""Peak host memory and time of loading a packed 4-bit Llama and getting a first answer: qload beside transformers.

    python benchmarks/load_memory.py [--device cpu] [--layers 24] [--rounds 5] [--json FILE]

Every way runs in a fresh process. Memory is the host's anonymous memory above what the process holds after its imports
(and, for a GPU, after its first use); pages of mapped files, which transformers keeps its weights in until the first
answer, do not count. For a GPU, the device's own peak above what stays there is measured besides.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine, measure_load
from memory import Watch, status
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INNER, HEADS, KV_HEADS, HEAD, VOCABULARY, GROUP = 2048, 5632, 32, 8, 64, 32000, 128
LINEAR = {
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
PACKAGES = ("torch", "transformers", "compressed-tensors", "safetensors")


def make_checkpoint(folder: Path, layers: int) -> int:
    """Write a checkpoint of random values, a file for every eight layers; returns its bytes."""
    placed: dict[str, str] = {}
    total = 0
    for first in range(0, layers, 8):
        tensors = {} if first else outer_tensors()
        for layer in range(first, min(first + 8, layers)):
            tensors |= layer_tensors(f"model.layers.{layer}")
        name = f"model-{first // 8 + 1:05}-of-{-(-layers // 8):05}.safetensors"
        save_file(tensors, folder / name)
        placed |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": placed})
    )
    (folder / "config.json").write_text(json.dumps(make_config(layers)))
    return total


def outer_tensors() -> dict[str, Tensor]:
    table = torch.randn(VOCABULARY, HIDDEN).to(torch.bfloat16)
    return {
        "model.embed_tokens.weight": table,
        "lm_head.weight": table.clone(),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }


def layer_tensors(name: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{name}.{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    for leaf, (rows, columns) in LINEAR.items():
        words = torch.randint(-(2**31), 2**31 - 1, (rows, columns // 8), dtype=torch.int32)
        tensors[f"{name}.{leaf}.weight_packed"] = words
        tensors[f"{name}.{leaf}.weight_scale"] = torch.full((rows, columns // GROUP), 0.001, dtype=torch.bfloat16)
        tensors[f"{name}.{leaf}.weight_shape"] = torch.tensor([rows, columns])
    return tensors


def make_config(layers: int) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": ["lm_head"],
        },
    }


def prepare_qload(folder: Path, device: str, dtype: torch.dtype | None = None) -> Callable[[], Any]:
    load = importlib.import_module("qload").load
    importlib.import_module("transformers.models.llama.modeling_llama")
    return lambda: load(folder, device=device, dtype=dtype)


def prepare_transformers(folder: Path, device: str) -> Callable[[], Any]:
    model_class = importlib.import_module("transformers").AutoModelForCausalLM
    importlib.import_module("transformers.models.llama.modeling_llama")
    importlib.import_module("compressed_tensors")
    return lambda: model_class.from_pretrained(folder).to(device)


WAYS: dict[str, Callable[[Path, str], Callable[[], Any]]] = {
    "qload.load": prepare_qload,
    "qload.load(dtype=float16)": partial(prepare_qload, dtype=torch.float16),
    "transformers from_pretrained": prepare_transformers,
}


def measure(way: str, folder: Path, device: str) -> dict[str, float]:
    """One way, in this process: seconds, and bytes above what it held after its imports."""
    load = WAYS[way](folder, device)
    torch.ones(1, device=device).sum().item()
    before = status("RssAnon")
    watch = Watch()
    watch.start()
    started = time.perf_counter()
    model = load()
    on_device = measure_device(device)
    loaded = time.perf_counter()
    after_load, peak_load = status("RssAnon"), watch.take()
    answer(model, device)
    answered = time.perf_counter()
    peak_answer, after_answer = watch.take(), status("RssAnon")
    answer(model, device)
    return {
        **on_device,
        "token_seconds": time.perf_counter() - answered,
        "load_seconds": loaded - started,
        "answer_seconds": answered - started,
        "load_peak": max(peak_load, after_load) - before,
        "load_stays": after_load - before,
        "answer_peak": max(peak_answer, after_answer) - before,
        "answer_stays": after_answer - before,
    }


def answer(model: Any, device: str) -> None:
    """One forward of one token."""
    with torch.inference_mode():
        model(torch.tensor([[1]], device=device)).logits.sum().item()


def measure_device(device: str) -> dict[str, float]:
    """A GPU's bytes now, and the most of them so far; waits for it."""
    if not device.startswith("cuda"):
        return {}
    torch.cuda.synchronize(device)
    return {
        "device_peak": torch.cuda.max_memory_allocated(device),
        "device_stays": torch.cuda.memory_allocated(device),
    }


def run(folder: Path, device: str, rounds: int) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS:
            command = [sys.executable, __file__, "--measure", way, "--folder", str(folder), "--device", device]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
            if number:  # the first round warms the page cache
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def show(found: dict[str, list[dict[str, float]]], total: int) -> None:
    print(f"checkpoint: {total / 1e6:.0f} MB; medians (least to greatest); memory as a multiple of the checkpoint\n")
    print("| way | load, s | first answer, s | one token, s | peak loading | stays loaded | peak answering | stays |")
    print("|---|---|---|---|---|---|---|---|")
    for way, runs in found.items():
        times = ("load_seconds", "answer_seconds", "token_seconds")
        cells = [spread([each[key] for each in runs], 1, 2) for key in times]
        keys = ("load_peak", "load_stays", "answer_peak", "answer_stays")
        cells += [spread([each[key] for each in runs], total, 3) for key in keys]
        print(f"| {way} | {' | '.join(cells)} |")
    print("\npeak while loading above what stays, MB: the host's, and a GPU's")
    for way, runs in found.items():
        host = spread([each["load_peak"] - each["load_stays"] for each in runs], 1e6, 1)
        excess = [each["device_peak"] - each["device_stays"] for each in runs if "device_peak" in each]
        print(f"{way}: {host}{f', {spread(excess, 1e6, 1)}' if excess else ''}")


def spread(values: list[float], unit: float, digits: int) -> str:
    low, middle, high = min(values) / unit, statistics.median(values) / unit, max(values) / unit
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder, arguments.device)))
        return
    since = measure_load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        total = make_checkpoint(folder, arguments.layers)
        found = run(folder, arguments.device, arguments.rounds)
    show(found, total)
    if arguments.json:
        machine = describe_machine(PACKAGES, device=arguments.device, since=since)
        arguments.json.write_text(json.dumps({"machine": machine, "bytes": total, "runs": found}, indent=1))


if __name__ == "__main__":
    main()
