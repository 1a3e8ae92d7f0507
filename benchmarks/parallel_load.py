"""Loading a Llama with layers as wide as a 7B's on 1, 2 and 4 ranks: qload, beside transformers' tensor parallelism.

    python benchmarks/parallel_load.py [--layers 2] [--rounds 3] [--sizes 1 2 4] [--json FILE]

Ranks are processes of this machine, joined by gloo, each of which computes on one core. Every way runs on fresh
processes, from a checkpoint packed to 4 bits and from the dense one. Memory is each rank's above what it holds after
its imports: resident, with the pages of mapped files, and anonymous. Times are those of the slowest rank. What a way
cannot do is kept with its error. transformers' tensor parallelism needs `pip install accelerate`.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from load_memory import PACKAGES, make_config, spread
from machine import describe_machine, measure_load
from memory import Watch, status
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from qload.torch.parallel import Group, run_ranks

HIDDEN, INNER, HEADS, HEAD, VOCABULARY, GROUP = 4096, 11008, 32, 128, 32000, 128
LINEAR = {
    **{f"self_attn.{leaf}": (HIDDEN, HIDDEN) for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")},
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
PROMPT, TOKENS = 32, 4
PACKED, DENSE = "int4", "bf16"
PEERS = ("accelerate",)

Prepare = Callable[[Path, Group], Callable[[], Any]]
"""What does a way's imports, and gives what loads."""


def make_checkpoint(folder: Path, layers: int, *, packed: bool) -> int:
    """Write a checkpoint of random values, a file for each layer; returns its bytes."""
    folder.mkdir()
    placed: dict[str, str] = {}
    total = 0
    for number in range(-1, layers):
        tensors = outer_tensors() if number < 0 else layer_tensors(f"model.layers.{number}", packed)
        file = f"model-{number + 2:05}-of-{layers + 1:05}.safetensors"
        save_file(tensors, folder / file)
        placed |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD}
    config = make_config(layers) | sizes | heads
    if not packed:
        del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return total


def outer_tensors() -> dict[str, Tensor]:
    return {
        "model.embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN).to(torch.bfloat16),
        "lm_head.weight": (torch.randn(VOCABULARY, HIDDEN) / 50).to(torch.bfloat16),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }


def layer_tensors(name: str, packed: bool) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{name}.{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    for leaf, (rows, columns) in LINEAR.items():
        if packed:
            words = torch.randint(-(2**31), 2**31 - 1, (rows, columns // 8), dtype=torch.int32)
            tensors[f"{name}.{leaf}.weight_packed"] = words
            tensors[f"{name}.{leaf}.weight_scale"] = torch.full((rows, columns // GROUP), 0.004, dtype=torch.bfloat16)
            tensors[f"{name}.{leaf}.weight_shape"] = torch.tensor([rows, columns])
        else:
            tensors[f"{name}.{leaf}.weight"] = (torch.randn(rows, columns) / 50).to(torch.bfloat16)
    return tensors


def prepare_qload(folder: Path, group: Group) -> Callable[[], Any]:
    load = importlib.import_module("qload").load
    importlib.import_module("qload.torch.models")
    importlib.import_module("transformers.models.llama.modeling_llama")
    mesh = init_device_mesh("cpu", (group.size,), mesh_dim_names=("tp",))
    return lambda: load(folder, mesh=mesh)


def prepare_transformers(folder: Path, group: Group) -> Callable[[], Any]:
    load = importlib.import_module("transformers").AutoModelForCausalLM.from_pretrained
    distributed = importlib.import_module("transformers.distributed")
    importlib.import_module("transformers.models.llama.modeling_llama")
    importlib.import_module("compressed_tensors")
    options = {"distributed_config": distributed.DistributedConfig(tp_size=group.size)} if group.size > 1 else {}
    return lambda: load(folder, dtype=torch.bfloat16, **options)


WAYS: dict[str, tuple[Prepare, str]] = {
    "qload, int4": (prepare_qload, PACKED),
    "qload, bf16": (prepare_qload, DENSE),
    "transformers, bf16": (prepare_transformers, DENSE),
    "transformers, int4": (prepare_transformers, PACKED),
}


def measure_rank(group: Group, way: str, folder: Path, logits: Path) -> list[dict[str, Any]]:
    """One way, on every rank: what each of them measured; the first keeps its logits."""
    prepare, kind = WAYS[way]
    load = prepare(folder / kind, group)
    torch.ones(1).sum().item()
    own = measure(load, logits if group.rank == 0 else None)
    found: list[Any] = [None] * group.size
    dist.all_gather_object(found, own)
    return found


def measure(load: Callable[[], Any], logits: Path | None) -> dict[str, Any]:
    fields = {"anonymous": "RssAnon", "resident": "VmRSS"}
    before = {name: status(field) for name, field in fields.items()}
    watches = {name: Watch(field) for name, field in fields.items()}
    for watch in watches.values():
        watch.start()
    model, load_seconds = take_time(load)
    loading = {f"{name}_loading": watch.take() - before[name] for name, watch in watches.items()}
    ids = torch.arange(1, PROMPT + 1)[None]
    with torch.inference_mode():
        found, answer_seconds = take_time(lambda: model(ids).logits.float().clone())
        _, forward_seconds = take_time(lambda: model(ids))
        _, seconds = take_time(lambda: generate(model))
    if logits is not None:
        torch.save(found, logits)
    answering = {f"{name}_answering": watch.take() - before[name] for name, watch in watches.items()}
    times = {"load_seconds": load_seconds, "answer_seconds": answer_seconds, "forward_seconds": forward_seconds}
    return {**times, "token_seconds": seconds / TOKENS, **loading, **answering, **describe(model)}


def take_time(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its seconds, from when all ranks begin."""
    dist.barrier()
    started = time.perf_counter()
    value = function()
    return value, time.perf_counter() - started


def generate(model: Any) -> Tensor:
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    found: Tensor = model.generate(torch.tensor([[1]]), attention_mask=torch.ones(1, 1), **options)
    return found


def describe(model: Any) -> dict[str, Any]:
    """What a rank holds in its tensors, and what qload says of its load."""
    local = [getattr(each, "to_local", lambda each=each: each)() for each in (*model.parameters(), *model.buffers())]
    held = sum({each.data_ptr(): each.nbytes for each in local}.values())
    said = getattr(model, "_qload_report", None)
    if said is None:
        return {"held": held}
    own = {"read": said.bytes_read, "needed": said.bytes_needed, "in_memory": said.bytes_in_memory}
    return {"held": held, **own, "phases": dict(said.seconds)}


def run(
    folder: Path, sizes: Sequence[int], rounds: int, keep: Callable[[dict[str, list[Any]], dict[str, str]], None]
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Each way on so many ranks, in turn, several times: what was measured, and the errors of what cannot be done.

    What there is so far is kept after each round.
    """
    found: dict[str, list[Any]] = {f"{way}, tp {size}": [] for way in WAYS for size in sizes}
    failures: dict[str, str] = {}
    for number in range(rounds):  # what has just been written is in the page cache
        for way in WAYS:
            for size in sizes:
                label = f"{way}, tp {size}"
                if label in failures:
                    continue
                done = start(way, size, folder)
                if isinstance(done, str):
                    failures[label] = done
                    del found[label]
                else:
                    ranks, error = done, compare(folder, way, size)
                    found[label].append({"ranks": ranks, "error": error, "load_average": os.getloadavg()[0]})
                print(number, label, done if isinstance(done, str) else "", file=sys.stderr, flush=True)
        keep(found, failures)
    return found, failures


def start(way: str, size: int, folder: Path) -> list[dict[str, Any]] | str:
    """What the ranks measured, or the first line of their error."""
    command = [sys.executable, __file__, "--measure", way, "--sizes", str(size), "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    except subprocess.TimeoutExpired:
        return "did not end in 300 s"
    if done.returncode:
        return next(line for line in done.stderr.splitlines() if re.match(r"\w[\w.]*(Error|Exception)\b", line))
    measured: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return measured


def logits_file(folder: Path, way: str, size: int) -> Path:
    return folder / f"{way}-{size}.pt"


def compare(folder: Path, way: str, size: int) -> float:
    """How far the logits are from those on one rank, as a share of their norm."""
    found, alone = (torch.load(logits_file(folder, way, each)) for each in (size, 1))
    return float((found - alone).norm() / alone.norm())


TIMES = ("load_seconds", "answer_seconds", "token_seconds")
BYTES = ("needed", "read", "held", "resident_loading", "resident_answering")
HEADINGS = (
    *("way", "load, s", "first answer, s", "one token, s"),
    *("needed, MB", "read, MB", "held, MB", "peak loading, MB", "peak answering, MB", "logits"),
)


def show(found: dict[str, list[Any]], failures: dict[str, str], totals: dict[str, int]) -> None:
    """Two tables: what was measured, and how it compares with one rank of the same round."""
    sizes = ", ".join(f"{kind} {total / 1e6:.0f} MB" for kind, total in totals.items())
    print(f"{sizes}; times: best (worst) of the slowest rank; bytes: the most of a rank\n")
    print_row(*HEADINGS)
    print_row(*("---" for _ in HEADINGS))
    for way, rounds in found.items():
        times = [[most(each, key) for each in rounds] for key in TIMES]
        memory = [max(most(each, key) for each in rounds) / 1e6 for key in BYTES]
        cells = [f"{min(values):.2f} ({max(values):.2f})" for values in times]
        error = max(each["error"] for each in rounds)
        print_row(way, *cells, *(f"{each:.0f}" if each else "not said" for each in memory), f"{error:.1e}")
    for way, failure in failures.items():
        print(f"\n{way}: {failure}")
    print("\nas a multiple of one rank's in the same round; median (least to greatest)\n")
    print_row("way", *HEADINGS[1:4])
    print_row(*("---" for _ in HEADINGS[:4]))
    for way, rounds in found.items():
        alone = found.get(f"{way.rpartition(',')[0]}, tp 1", rounds)
        if alone is not rounds:
            pairs = list(zip(rounds, alone, strict=False))
            print_row(way, *(spread([most(a, key) / most(b, key) for a, b in pairs], 1, 2) for key in TIMES))


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def most(measured: dict[str, Any], key: str) -> float:
    """The greatest of a round's ranks."""
    return max(float(rank.get(key, 0)) for rank in measured["ranks"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        way, (size,), folder = arguments.measure, arguments.sizes, arguments.folder
        print(json.dumps(run_ranks(measure_rank, size, way, folder, logits_file(folder, way, size))))
        return
    since = measure_load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        totals = {
            kind: make_checkpoint(folder / kind, arguments.layers, packed=kind == PACKED) for kind in (PACKED, DENSE)
        }

        def keep(found: dict[str, list[Any]], failures: dict[str, str]) -> None:
            kept = {
                "machine": describe_machine((*PACKAGES, *PEERS), since=since),
                "bytes": totals,
                "runs": found,
                "failures": failures,
            }
            if arguments.json:
                arguments.json.write_text(json.dumps(kept, indent=1))

        show(*run(folder, arguments.sizes, arguments.rounds, keep), totals)


if __name__ == "__main__":
    main()
