"""Computing with a loaded model: each linear layer beside torch's own kernels, and decoding with a whole model.

    python benchmarks/computing.py [--rounds 5] [--device cpu] [--formats "int4 g128" ...] [--json FILE]

Layers are of a 7B Llama's shapes, several of each, so that weights come from memory and not from a cache. Ways: qload
as it loads, qload that makes every weight dense (`kernels=()`), the kernel that torch has for the format, or
bitsandbytes for its own, and nothing around it, torchao's layer, and a dense layer in bfloat16. The whole model is
small and deep: tokens a second of decoding, and of a prompt of 512, beside transformers with the format's own package,
torchao and a dense model. Ways take turns in a new order each round, in one process; ratios are taken inside a round.
On a GPU each call is a CUDA graph where it can be one. What a way cannot do is kept with its error.
"""

import argparse
import gc
import importlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from bare import BARE, Call, Make, make_dense, make_torchao, quantize
from checkpoints import DENSE, FORMATS, Sizes, make_checkpoint
from loading import spread
from machine import describe_machine, measure_load
from progress import say
from torch import Tensor, nn

WIDE = Sizes(hidden=4096, inner=11008, heads=32, kv_heads=32, head=128, vocabulary=1024)
DEEP = Sizes(hidden=2048, inner=5632, heads=32, kv_heads=8, head=64, vocabulary=8192)
BATCHES = (1, 16, 512)
PROMPT, LONG, ROOM = 32, 512, 1024
LEAST, MOST = 0.03, 0.3
"""Seconds that a call is repeated for, and that it may take."""
QLOAD, DENSIFYING, BARE_KERNEL, TORCHAO, PLAIN = (
    "qload",
    "qload, dequantizing",
    "torch's kernel",
    "torchao",
    "dense bf16",
)
PACKAGES = ("torch", "transformers", "compressed-tensors", "torchao", "bitsandbytes")

Seconds = dict[str, list[float]]
Errors = dict[str, str]
T = TypeVar("T")


def measure_layers(
    folder: Path, form: str, device: str, batches: Sequence[int], rounds: int
) -> tuple[dict[str, dict[str, Seconds]], Errors]:
    """Seconds of a layer, by shape and batch; and why some ways have none."""
    models = {QLOAD: load(folder, device), DENSIFYING: load(folder, device, dense=True)}
    found: dict[str, dict[str, Seconds]] = {}
    errors: Errors = {}
    for (rows, columns), names in list_shapes(models[QLOAD]).items():
        for batch in batches:
            say(f"{form}, {columns} to {rows}, batch {batch}")
            x = torch.randn(batch, columns, dtype=torch.bfloat16, device=device)
            calls: dict[str, list[Call]] = {
                way: [partial(model.get_submodule(name), x) for name in names] for way, model in models.items()
            }
            for way, make in list_makers(form, errors).items():
                made = attempt(errors, way, partial(make_several, make, len(names), rows, columns, x))
                if made is not None:
                    calls[way] = made
            found.setdefault(f"{columns} to {rows}", {})[str(batch)] = take_turns(calls, errors, device, rounds)
            gc.collect()
    return found, errors


def describe_paths(folder: Path, device: str) -> dict[str, int]:
    """What qload's layers compute with, as its report says: the number of layers by path."""
    qload = importlib.import_module("qload")
    return dict(getattr(qload.report(load(folder, device)), "paths", {}))


def list_makers(form: str, errors: Errors) -> dict[str, Make]:
    """What is measured beside qload."""
    makers: dict[str, Make] = {PLAIN: make_dense, TORCHAO: partial(make_torchao, form)}
    if form in BARE:
        return makers | {BARE_KERNEL: BARE[form][1]}
    errors[BARE_KERNEL] = "torch has none for it"
    return makers


def make_several(make: Make, count: int, rows: int, columns: int, x: Tensor) -> list[Call]:
    return [make(rows, columns, x) for _ in range(count)]


def load(folder: Path, device: str, *, dense: bool = False) -> nn.Module:
    """qload's model; with `dense` one that makes its weights dense, as one without kernels does anyway."""
    qload = importlib.import_module("qload")
    try:
        model = qload.load(folder, device=device, **({"kernels": ()} if dense else {}))
    except TypeError:
        model = qload.load(folder, device=device)
    loaded: nn.Module = model.eval()
    return loaded


def list_shapes(model: nn.Module) -> dict[tuple[int, int], list[str]]:
    """The names of the decoder layers' linear layers, by rows and columns."""
    shapes: dict[tuple[int, int], list[str]] = {}
    for name, module in model.named_modules():
        geometry = getattr(module, "geometry", None)
        if geometry is not None and name.endswith("_proj"):
            shapes.setdefault((geometry.out_features, geometry.in_features), []).append(name)
    return shapes


def attempt(errors: Errors, way: str, action: Callable[[], T]) -> T | None:
    """What it gives; None where it fails, and the first line of its error is kept."""
    try:
        return action()
    except Exception as error:
        errors.setdefault(way, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
        return None


def take_turns(calls: Mapping[str, list[Call]], errors: Errors, device: str, rounds: int) -> Seconds:
    """Seconds of one call of each way, round by round."""
    found: Seconds = {}
    ready: dict[str, tuple[Call, int]] = {}
    for way, each in calls.items():
        made = attempt(errors, way, partial(prepare, each, device))
        if made is not None:
            ready[way] = made
    shuffled = random.Random(0)
    for _ in range(rounds):
        for way in shuffled.sample(list(ready), len(ready)):
            call, count = ready[way]
            found.setdefault(way, []).append(time_call(call, device) / count)
    return found


@torch.inference_mode()
def prepare(calls: Sequence[Call], device: str) -> tuple[Call, int]:
    """One call of all of them, or of as many as end in time; and how many these are."""
    run_all(calls[:1])
    seconds = time_once(partial(run_all, calls[:1]), device)
    count = max(1, min(len(calls), int(MOST / seconds)))
    return record(partial(run_all, calls[:count]), device), count


def run_all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def record(call: Call, device: str) -> Call:
    """On a GPU a graph of the call, where it can be one: what launching kernels costs is then no part of it."""
    if not device.startswith("cuda"):
        return call
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    try:
        with torch.cuda.stream(stream):
            call()
        torch.cuda.synchronize(device)
        with torch.cuda.graph(graph, stream=stream):
            call()
    except RuntimeError:
        torch.cuda.synchronize(device)
        return call
    return graph.replay


@torch.inference_mode()
def time_call(call: Call, device: str) -> float:
    """Seconds of a call, of so many as take long enough to be timed."""
    first = time_once(call, device)
    count = int(LEAST / first)
    return time_once(lambda: [call() for _ in range(count)], device) / count if count > 1 else first


def time_once(call: Call, device: str) -> float:
    started = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure_model(
    folder: Path, form: str, device: str, rounds: int, batches: Sequence[int]
) -> tuple[dict[str, Seconds], Errors]:
    """Tokens a second of decoding, by batch, and of a prompt."""
    errors: Errors = {}
    models: dict[str, nn.Module] = {}
    packed, plain = folder / "packed", folder / "dense"
    makers: dict[str, Callable[[], nn.Module]] = {
        QLOAD: lambda: load(packed, device),
        DENSIFYING: lambda: load(packed, device, dense=True),
        name_transformers(form): lambda: load_transformers(packed, device),
        TORCHAO: lambda: load_torchao(plain, form, device),
        PLAIN: lambda: load_transformers(plain, device),
    }
    for way, make in makers.items():
        made = attempt(errors, way, make)
        if made is not None:
            models[way] = made
    found: dict[str, Seconds] = {}
    for batch in batches:
        say(f"{form}, a whole model, batch {batch}")
        steps = {way: list(make_step(model, batch, device)) for way, model in models.items()}
        seconds = take_turns(steps, errors, device, rounds)
        found[f"decode {batch}"] = {way: [batch / each for each in runs] for way, runs in seconds.items()}
    prompts: dict[str, list[Call]] = {way: [partial(prefill, model, LONG, device)] for way, model in models.items()}
    seconds = take_turns(prompts, errors, device, rounds)
    found[f"prompt {LONG}"] = {way: [LONG / each for each in runs] for way, runs in seconds.items()}
    return found, errors


def name_transformers(form: str) -> str:
    return f"transformers + {(FORMATS[form].config or {}).get('quant_method')}"


def make_step(model: nn.Module, batch: int, device: str) -> Iterator[Call]:
    """A call that decodes one token more; where there is no more room, the same ones again."""
    cache_class = importlib.import_module("transformers").StaticCache
    cache = cache_class(config=model.config, max_cache_len=ROOM)
    with torch.inference_mode():
        model(torch.ones(batch, PROMPT, dtype=torch.int64, device=device), past_key_values=cache)
    ids = torch.ones(batch, 1, dtype=torch.int64, device=device)

    def step() -> Tensor:
        for layer in cache.layers:
            layer.cumulative_length.clamp_(max=ROOM - 1)
        logits: Tensor = model(ids, past_key_values=cache).logits
        return logits

    yield step


def prefill(model: nn.Module, tokens: int, device: str) -> Tensor:
    logits: Tensor = model(torch.ones(1, tokens, dtype=torch.int64, device=device), logits_to_keep=1).logits
    return logits


def load_transformers(folder: Path, device: str) -> nn.Module:
    """transformers' own model; a packed one is dense once it has answered."""
    model: nn.Module = importlib.import_module("transformers").AutoModelForCausalLM.from_pretrained(folder).to(device)
    return model.eval()


def load_torchao(folder: Path, form: str, device: str) -> nn.Module:
    model = load_transformers(folder, device)
    quantize(model.get_submodule("model"), form, device)  # the head stays as the checkpoints have it
    return model


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    since = measure_load()
    layers: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    whole: dict[str, Any] = {}
    failures: dict[str, Errors] = {}
    for form in arguments.formats:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "packed"
            make_checkpoint(folder, scale(WIDE, arguments.divide), arguments.layers, FORMATS[form])
            layers[form], failures[form] = measure_layers(
                folder, form, arguments.device, arguments.batches, arguments.rounds
            )
            paths[form] = describe_paths(folder, arguments.device)
        gc.collect()
    for form in arguments.models:
        with tempfile.TemporaryDirectory() as name:
            folder, sizes = Path(name), scale(DEEP, arguments.divide)
            make_checkpoint(folder / "packed", sizes, arguments.depth, FORMATS[form])
            make_checkpoint(folder / "dense", sizes, arguments.depth, DENSE)
            batches = [batch for batch in arguments.batches if batch < LONG]
            whole[form], errors = measure_model(folder, form, arguments.device, arguments.rounds, batches)
            failures[f"{form}, model"] = errors
        gc.collect()
    say()
    machine = describe_machine(PACKAGES, device=arguments.device, since=since)
    threads = torch.get_num_threads()
    found = {"layers": layers, "models": whole, "paths": paths, "failures": failures}
    return {"machine": machine, "threads": threads, **found}


def scale(sizes: Sizes, divisor: int) -> Sizes:
    """Smaller ones for a trial."""
    if divisor == 1:
        return sizes
    hidden = sizes.hidden // divisor
    return Sizes(hidden, 2 * hidden, hidden // sizes.head, max(1, hidden // sizes.head), sizes.head, sizes.vocabulary)


def show(kept: Mapping[str, Any]) -> None:
    print("| format | shape | batch | qload, ms | of torch's kernel | dequantizing | torchao | dense bf16 |")
    print("|---|---|---|---|---|---|---|---|")
    for form, shapes in kept["layers"].items():
        for shape, batches in shapes.items():
            for batch, seconds in batches.items():
                own = spread([each * 1e3 for each in seconds[QLOAD]], ".2f")
                cells = [compare(seconds, way) for way in (BARE_KERNEL, DENSIFYING, TORCHAO, PLAIN)]
                print(f"| {form} | {shape} | {batch} | {own} | {' | '.join(cells)} |")
    for form, states in kept["models"].items():
        print(f"\n{form}: tokens a second\n")
        for state, speeds in states.items():
            for way, each in speeds.items():
                print(f"| {state} | {way} | {spread(each, '.1f')} |")
    for form, errors in kept["failures"].items():
        for way, reason in errors.items():
            print(f"\n{form}, {way}: {reason}")


def compare(seconds: Mapping[str, Sequence[float]], way: str) -> str:
    """A way's seconds as a multiple of qload's in the same round; of a bare kernel, qload's of its own."""
    if way not in seconds:
        return "none"
    return spread(rate(seconds, way), ".2f")


def rate(seconds: Mapping[str, Sequence[float]], way: str) -> list[float]:
    pairs = zip(seconds[way], seconds[QLOAD], strict=True)
    return [own / other if way == BARE_KERNEL else other / own for other, own in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS), help="of the layers")
    parser.add_argument(
        "--models", nargs="*", choices=FORMATS, default=["int4 g128", "int8", "nf4"], help="decoded wholly"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--layers", type=int, default=2, help="decoder layers of the wide model")
    parser.add_argument("--depth", type=int, default=12, help="decoder layers of the deep one")
    parser.add_argument("--divide", type=int, default=1, help="make widths so much smaller, for a trial")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kept = measure_all(arguments)
    show(kept)
    if arguments.json:
        arguments.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
