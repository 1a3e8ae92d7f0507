"""How near to the limit a checkpoint is read: a whole load's copies, warm and cold, and those of one rank of several.

    python benchmarks/reading.py [--layers 8] [--rounds 7] [--ways WAY ...] [--folder KEPT] [--json FILE]

The checkpoint is a Llama that GPTQ made, of random values, in several files. Every run is a process of its own, and
rounds are interleaved; ratios are taken inside a round. The limits are the same bytes read by two threads with
`preadv` into fresh memory of huge pages, and, where the files are not in the page cache, by O_DIRECT into a small
buffer. Memory is the greatest resident set, mapped pages of files included, above that before the copies.
"""

import argparse
import importlib
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine, measure_load
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INNER, HEADS, HEAD, VOCABULARY, GROUP = 4096, 11008, 32, 128, 32000, 128
LINEAR = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    "mlp.gate_proj": (HIDDEN, INNER),
    "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}
PER_FILE = 2
CALL, SMALL = 16 << 20, 8 << 20
PACKAGES = ("torch", "transformers", "safetensors")


def make_checkpoint(folder: Path, layers: int) -> None:
    """Write it, with so many layers in a file."""
    placed: dict[str, str] = {}
    for first in range(0, layers, PER_FILE):
        tensors = {} if first else outer_tensors()
        for layer in range(first, min(first + PER_FILE, layers)):
            tensors |= layer_tensors(f"model.layers.{layer}")
        name = f"model-{first // PER_FILE + 1:05}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        placed |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / "config.json").write_text(json.dumps(make_config(layers)))


def outer_tensors() -> dict[str, Tensor]:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    tables = {name: torch.randn(VOCABULARY, HIDDEN).to(torch.float16) for name in names}
    return {**tables, "model.norm.weight": torch.ones(HIDDEN, dtype=torch.float16)}


def layer_tensors(name: str) -> dict[str, Tensor]:
    norms = ("input_layernorm", "post_attention_layernorm")
    tensors = {f"{name}.{norm}.weight": torch.ones(HIDDEN, dtype=torch.float16) for norm in norms}
    for leaf, (columns, rows) in LINEAR.items():
        shapes = {"qweight": (columns // 8, rows), "qzeros": (columns // GROUP, rows // 8)}
        for part, shape in shapes.items():
            tensors[f"{name}.{leaf}.{part}"] = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)
        tensors[f"{name}.{leaf}.scales"] = torch.full((columns // GROUP, rows), 0.001, dtype=torch.float16)
        tensors[f"{name}.{leaf}.g_idx"] = torch.arange(columns, dtype=torch.int32) // GROUP
    return tensors


def make_config(layers: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False},
    }


def list_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def prepare_limit(folder: Path, nbytes: int) -> Callable[[], int]:
    """The first `nbytes` of the files into fresh memory of huge pages, by two threads."""
    chunks = list(cut_files(folder, nbytes))

    def run() -> int:
        image = mmap.mmap(-1, nbytes + CALL, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        image.madvise(mmap.MADV_HUGEPAGE)
        memory = memoryview(image)
        files = {path: os.open(path, os.O_RDONLY) for path, _, _, _ in chunks}
        share_out(chunks, 2, lambda path, at, size, to: os.preadv(files[path], [memory[to : to + size]], at))
        return nbytes

    return run


def prepare_disk(folder: Path, nbytes: int, threads: int = 4) -> Callable[[], int]:
    """The first `nbytes` of the files past the page cache into a small buffer for each thread."""
    chunks = list(cut_files(folder, nbytes))

    def run() -> int:
        files = {path: os.open(path, os.O_RDONLY | os.O_DIRECT) for path, _, _, _ in chunks}
        local = threading.local()

        def read(path: Path, at: int, size: int, _: int) -> None:
            if not hasattr(local, "buffer"):
                local.buffer = mmap.mmap(-1, CALL)
            os.preadv(files[path], [memoryview(local.buffer)[: -(-size // 4096) * 4096]], at)

        share_out(chunks, threads, read)
        return nbytes

    return run


Chunk = tuple[Path, int, int, int]


def cut_files(folder: Path, nbytes: int) -> Iterator[Chunk]:
    """File, place there, size and place in all of them, of each call."""
    done = 0
    for path in list_files(folder):
        size = min(path.stat().st_size, nbytes - done)
        for at in range(0, size, CALL):
            yield path, at, min(CALL, size - at), done + at
        done += size


def share_out(chunks: list[Chunk], threads: int, read: Callable[..., object]) -> None:
    waiting, lock = list(reversed(chunks)), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                chunk = waiting.pop()
            read(*chunk)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def prepare_load(folder: Path, rank: int, size: int, reader: str) -> Callable[[], int]:
    """The copies of one rank's load, without packing for kernels, and with everything before them done."""
    from qload.torch.loading.load import Load, LoadOptions
    from qload.torch.models.loading import plan_load
    from qload.torch.parallel import Group

    options = LoadOptions(torch.device("cpu"), group=Group(rank, size), kernels=(), reader=reader)
    planned = plan_load(Load.begin(folder, options), None, True, by_experts=False)

    def run() -> int:
        planned.loading.copy(planned.plan, planned._find)
        return planned.loading.bytes_read

    return run


WAYS: dict[str, Callable[[Path], Callable[[], int]]] = {
    "limit": lambda folder: prepare_limit(folder, sum(path.stat().st_size for path in list_files(folder))),
    "load": lambda folder: prepare_load(folder, 0, 1, "auto"),
    "load, safetensors": lambda folder: prepare_load(folder, 0, 1, "safetensors"),
    **{
        name: lambda folder, size=size, make=make: make(folder, size)  # type: ignore[misc]
        for size in (2, 4, 8)
        for name, make in {
            f"limit of 1/{size}": lambda folder, size: prepare_limit(folder, shard_bytes(folder, size)),
            f"load, 1 of {size}": lambda folder, size: prepare_load(folder, size - 1, size, "auto"),
        }.items()
    },
    "disk": lambda folder: prepare_disk(folder, sum(path.stat().st_size for path in list_files(folder))),
    "load, cold": lambda folder: prepare_load(folder, 0, 1, "auto"),
    "load, cold, buffered": lambda folder: prepare_load(folder, 0, 1, "buffered"),
}
LIMITS = {
    "load": "limit",
    "load, safetensors": "limit",
    **{f"load, 1 of {size}": f"limit of 1/{size}" for size in (2, 4, 8)},
    "load, cold": "disk",
    "load, cold, buffered": "disk",
}


def shard_bytes(folder: Path, size: int) -> int:
    """What a rank needs, but for what is whole on all of them."""
    return sum(path.stat().st_size for path in list_files(folder)) // size


def measure(way: str, folder: Path) -> dict[str, float]:
    """One way, in this process.

    All of them import the same first: memory that the last process freed is cheap, until the host has taken it back.
    """
    importlib.import_module("qload.torch.models.loading")
    if is_cold(way):
        drop_pages(folder)
    run = WAYS[way](folder)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    started = time.perf_counter()
    nbytes = run()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": nbytes, "peak": status("VmHWM") - before, "stays": status("VmRSS") - before}


def is_cold(way: str) -> bool:
    return "cold" in way or way == "disk"


def drop_pages(folder: Path) -> None:
    for path in list_files(folder):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def status(field: str) -> int:
    """A field of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def run_rounds(folder: Path, rounds: int, ways: list[str]) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in sorted(ways, key=is_cold):
            if not is_cold(way) and is_cold(sorted(ways, key=is_cold)[-1]):
                warm(folder)
            command = [sys.executable, __file__, "--measure", way, "--folder", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def warm(folder: Path) -> None:
    for path in list_files(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(CALL):
                pass


HEADINGS = ("way", "GB", "ms", "GB/s", "of its limit", "peak above what stays, MB")


def list_rows(found: dict[str, list[dict[str, float]]]) -> Iterator[list[str]]:
    """A row for each way: medians, with the least and the greatest; ratios are taken inside a round."""
    for way, runs in found.items():
        rates = [each["bytes"] / each["seconds"] / 1e9 for each in runs]
        limit = found.get(LIMITS.get(way, ""), [])
        ratios = [rate / (each["bytes"] / each["seconds"] / 1e9) for rate, each in zip(rates, limit, strict=False)]
        peaks = [(each["peak"] - each["stays"]) / 1e6 for each in runs]
        yield [
            way,
            f"{runs[0]['bytes'] / 1e9:.2f}",
            spread([each["seconds"] * 1e3 for each in runs], 0),
            spread(rates, 2),
            spread(ratios, 2) if ratios else "",
            spread(peaks, 0),
        ]


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is written to and kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder)))
        return
    load = measure_load()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if not list_files(folder):
            make_checkpoint(folder, arguments.layers)
        found = run_rounds(folder, arguments.rounds, arguments.ways)
    print("\nmedians (least to greatest)\n")
    for cells in (HEADINGS, ["---"] * len(HEADINGS), *list_rows(found)):
        print(f"| {' | '.join(cells)} |")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": describe_machine(PACKAGES, since=load), "runs": found}, indent=1)
        )


if __name__ == "__main__":
    main()
