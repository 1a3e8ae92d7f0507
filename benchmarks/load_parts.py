"""Time of each part of a load: the imports, the headers, the model, its layers, the plan, and the copying.

    python benchmarks/load_parts.py [--model dense mixture] [--layers N] [--data] [--rounds 5] [--json FILE]

Two checkpoints, packed to 4 bits in groups of 128 by compressed-tensors' layout: 32 layers of the shapes of a 7B Llama,
and a mixture of 24 layers with 128 experts each, stored one by one. Every round is a fresh process; the models take
turns. Files have real headers before sparse data, and a round ends with the plan; with `--data` they are written, and
loaded whole.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import describe_machine
from plan_speed import LAYERS_IN_A_FILE, Shapes, layer_tensors, make_config, packed_tensors, write_header
from timing import show

HIDDEN, INNER, HEADS, VOCABULARY = 4096, 11008, 32, 32000
DENSE = {
    **{f"self_attn.{leaf}_proj": (HIDDEN, HIDDEN) for leaf in "qkvo"},
    **{f"mlp.{leaf}_proj": (INNER, HIDDEN) for leaf in ("gate", "up")},
    "mlp.down_proj": (HIDDEN, INNER),
}
PACKAGES = ("torch", "transformers", "safetensors")


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint to be made: transformers' name of its kind, and its layers, with so many experts if any."""

    kind: str
    layers: int
    experts: int = 0

    def config(self) -> dict[str, Any]:
        config = make_config(self.layers, self.experts)
        if not self.experts:
            config |= {
                "architectures": ["LlamaForCausalLM"],
                "model_type": self.kind,
                "hidden_size": HIDDEN,
                "intermediate_size": INNER,
                "num_attention_heads": HEADS,
                "num_key_value_heads": HEADS,
                "head_dim": HIDDEN // HEADS,
            }
        return config | {"vocab_size": VOCABULARY}

    def tensors(self, layer: int) -> Shapes:
        name = f"model.layers.{layer}"
        if self.experts:
            return layer_tensors(name, self.experts)
        tensors: Shapes = {
            f"{name}.{norm}.weight": ("BF16", (HIDDEN,)) for norm in ("input_layernorm", "post_attention_layernorm")
        }
        for leaf, shape in DENSE.items():
            tensors |= packed_tensors(f"{name}.{leaf}", *shape)
        return tensors

    def outer(self) -> Shapes:
        hidden = self.config()["hidden_size"]
        table = ("BF16", (VOCABULARY, hidden))
        return {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": ("BF16", (hidden,))}

    def write(self, folder: Path, *, data: bool) -> int:
        """Write the checkpoint; returns the number of its tensors."""
        placed: dict[str, str] = {}
        for first in range(0, self.layers, LAYERS_IN_A_FILE):
            tensors = {} if first else self.outer()
            for layer in range(first, min(first + LAYERS_IN_A_FILE, self.layers)):
                tensors |= self.tensors(layer)
            file = f"model-{first // LAYERS_IN_A_FILE + 1:05}-of-{-(-self.layers // LAYERS_IN_A_FILE):05}.safetensors"
            write_header(folder / file, tensors)
            if data:
                write_data(folder / file)
            placed |= dict.fromkeys(tensors, file)
        index = {"metadata": {}, "weight_map": placed}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps(self.config()))
        return len(placed)


MODELS = {"dense": Model("llama", 32), "mixture": Model("qwen3_moe", 24, 128)}


def write_data(path: Path) -> None:
    """Fill a file whose header is there: random words, and floats near 0.001."""
    noise, floats = os.urandom(1 << 24), b"\x83\x3a" * (1 << 23)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        for name, entry in json.loads(file.read(length)).items():
            if name == "__metadata__":
                continue
            start, stop = entry["data_offsets"]
            pattern = {"I32": noise, "BF16": floats}.get(entry["dtype"], bytes(16))
            file.seek(8 + length + start)
            for at in range(start, stop, len(pattern)):
                file.write(pattern[: stop - at])


@dataclass(slots=True)
class Clock:
    """The seconds of each part, in their order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - started


def measure(folder: Path, kind: str, *, data: bool) -> dict[str, float]:
    """Load in this process, which has imported nothing yet, or only plan to."""
    clock = Clock()
    for package in ("qload", "torch", "transformers", "qload.torch.models"):
        with clock.time(f"import {package}"):
            importlib.import_module(package)
    with clock.time("import the model's classes"):
        importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    torch, loading = importlib.import_module("torch"), importlib.import_module("qload.torch.models.loading")
    load = importlib.import_module("qload.torch.loading.load")
    begun = load.Load.begin(folder, load.LoadOptions(torch.device("cpu")))
    planned = loading.plan_load(begun, None, True, by_experts=False)
    if planned.plan.findings:
        raise SystemExit("the checkpoint was made wrongly: there are findings")
    if data:
        planned.run()
    return clock.seconds | begun.seconds


def run(folders: dict[str, Path], rounds: int, *, data: bool) -> dict[str, dict[str, list[float]]]:
    """The seconds of each part of each model, round by round."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in folders}
    for number in range(rounds + 1):
        for name, folder in folders.items():
            job = [sys.executable, __file__, "--measure", str(folder), MODELS[name].kind, *(["--data"] if data else [])]
            done = subprocess.run(job, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            if number:  # the first round warms the page cache
                for part, seconds in json.loads(done.stdout).items():
                    found[name].setdefault(part, []).append(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--layers", type=int, help="of each model, in place of its own number")
    parser.add_argument("--data", action="store_true", help="write data, and load it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        folder, kind = arguments.measure
        print(json.dumps(measure(Path(folder), kind, data=arguments.data)))
        return
    with tempfile.TemporaryDirectory() as name:
        folders = {model: Path(name) / model for model in arguments.model}
        tensors: dict[str, int] = {}
        for model, folder in folders.items():
            folder.mkdir()
            made = Model(MODELS[model].kind, arguments.layers or MODELS[model].layers, MODELS[model].experts)
            tensors[model] = made.write(folder, data=arguments.data)
        found = run(folders, arguments.rounds, data=arguments.data)
    for model, parts in found.items():
        print(f"\n{model}: {tensors[model]} tensors; medians (least to greatest)")
        whole = sum(statistics.median(runs) for runs in parts.values())
        show(("part", "s", "of all"), parts, lambda seconds, whole=whole: f"{seconds / whole:.1%}", ".3f")  # type: ignore[misc]
    if arguments.json:
        machine = describe_machine(PACKAGES)
        arguments.json.write_text(json.dumps({"machine": machine, "tensors": tensors, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
