"""Time of a mixture's experts computed at once by grouped products, beside one expert after another.

    python benchmarks/grouping.py [--hidden 2048] [--inner 768] [--dtype bfloat16] [--device cpu] [--json FILE]
        [--rounds 7] [--backend inductor] [--case 128,8,16 ...]

A case is the number of experts, how many of them a token chooses, and the number of tokens. The ways take turns, and
what is compiled is so before the clock starts. On a CPU, time is that of one thread's own work, which others on the
machine do not lengthen; on a GPU it is that until all is done.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine, measure_load
from timing import Runs
from torch import Tensor
from torch.nn import functional as F

import qload
from qload import Registry
from qload.quantization import unquantized
from qload.torch import Experts, Site, make_experts
from qload.torch.layers.routing import Routing

CASES = ("8,2,1", "8,2,16", "8,2,128", "8,2,512", "128,8,1", "128,8,4", "128,8,16", "128,8,128")
LOOP, GROUPED = "one by one", "at once"
COMPILED_LOOP, COMPILED = "one by one, compiled", "at once, compiled"

Routed = tuple[Tensor, Tensor, Tensor]


def gate(fused: Tensor) -> Tensor:
    first, second = fused.chunk(2, -1)
    return F.silu(first) * second


def make_mixtures(experts: int, options: argparse.Namespace) -> tuple[Experts, Experts]:
    """The same experts twice, of random weights: as they are loaded, and without kernels."""
    dtype, quantization = getattr(torch, options.dtype), unquantized(Registry.discover())
    shapes = {"gate_proj": (options.inner, options.hidden), "up_proj": (options.inner, options.hidden)}
    shapes["down_proj"] = options.hidden, options.inner
    stored = {
        f"moe.{expert}.{name}.weight": torch.randn(shape, dtype=dtype).mul_(shape[1] ** -0.5)
        for expert in range(experts)
        for name, shape in shapes.items()
    }
    made = []
    for kernels in (None, ()):
        site = Site(quantization, "moe", dtype=dtype)
        made.append(make_experts(experts, options.hidden, options.inner, site, gate=gate))
        qload.load_tensors(made[-1], stored, quantization, device=options.device, kernels=kernels)
    return made[0], made[1]


def route(experts: int, choices: int, tokens: int, options: argparse.Namespace) -> Routed:
    hidden = torch.randn(tokens, options.hidden, device=options.device).to(getattr(torch, options.dtype))
    weights, ids = torch.rand(tokens, experts, device=options.device).softmax(-1).topk(choices)
    return hidden, ids, weights.to(hidden.dtype)


def make_ways(grouped: Experts, plain: Experts, routed: Routed, backend: str) -> dict[str, Callable[[], Tensor]]:
    """What is measured, each of which has been called once."""
    hidden, ids, weights = routed
    count = grouped.gate_up_proj.geometry.experts or 0
    routing = Routing(ids, weights, 0, count, is_whole=True)
    ways: dict[str, Callable[[], Tensor]] = {LOOP: lambda: plain(*routed)}
    if hidden.device.type == "cpu" or grouped.gate_up_proj.grouped:
        ways[GROUPED] = lambda: routing.visit_groups(grouped.visit_groups, hidden)
    torch._dynamo.reset()
    for way, experts in ((COMPILED_LOOP, plain), (COMPILED, grouped)):
        compiled = torch.compile(experts, fullgraph=True, dynamic=False, backend=backend)
        if experts is plain or grouped.gate_up_proj.grouped:
            ways[way] = lambda compiled=compiled: compiled(*routed)  # type: ignore[misc]
    for call in ways.values():
        call()
    return ways


def time_ways(ways: dict[str, Callable[[], Tensor]], rounds: int, device: str) -> Runs:
    """Seconds of each call of each way, in turns."""

    def read() -> float:
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    found: Runs = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, call in ways.items():
            started = read()
            call()
            if number:
                found[way].append(read() - started)
    return found


def measure(options: argparse.Namespace) -> dict[str, Runs]:
    """The runs of each case."""
    found, mixtures = dict[str, Runs](), dict[int, tuple[Experts, Experts]]()
    for case in options.case or CASES:
        experts, choices, tokens = map(int, case.split(","))
        if experts not in mixtures:
            mixtures.clear()
            mixtures[experts] = make_mixtures(experts, options)
        ways = make_ways(*mixtures[experts], route(experts, choices, tokens, options), options.backend)
        found[case] = time_ways(ways, options.rounds, options.device)
        print_row(case, found[case])
    return found


def print_row(case: str, runs: Runs) -> None:
    """A case's medians, and those at once in relation to those one by one."""
    middles = {way: statistics.median(each) for way, each in runs.items()}
    pairs = [(LOOP, GROUPED), (COMPILED_LOOP, COMPILED)]
    ratios = [f"{middles[ours] / middles[other]:.2f}" for other, ours in pairs if {other, ours} <= middles.keys()]
    times = ", ".join(f"{way} {1e3 * middle:.2f} ms" for way, middle in middles.items())
    print(f"{case}: {times}; at once takes {' and '.join(ratios)} of it", flush=True)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=768)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--case", action="append")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options, since = read_options(), measure_load()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with torch.inference_mode():
        found = measure(options)
    if options.json is not None:
        what: dict[str, Any] = {"machine": describe_machine(["torch"], device=options.device, since=since)}
        asked = {name: getattr(options, name) for name in ("hidden", "inner", "dtype", "backend")}
        options.json.write_text(json.dumps({**what, **asked, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
