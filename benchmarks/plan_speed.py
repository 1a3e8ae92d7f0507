"""Time of validating and of planning a checkpoint of many tensors, beside that of parsing its headers.

    python benchmarks/plan_speed.py [--layers 48] [--experts 128] [--rounds 5] [--json FILE]

The checkpoint is a mixture of experts, packed to 4 bits in groups of 128 by compressed-tensors' layout: real headers
before sparse data, which nothing here reads. Parsing the headers as JSON is what no way can do without. The ways take
turns in one process; `qload.plan_ranks` plans for 1, 2, 4 and 8 ranks, and the plan is that of a load, in which each
layer's experts are one stack.
"""

import argparse
import gc
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from machine import describe_machine, measure_load
from timing import show, time_calls

import qload
from qload import Registry
from qload.checkpoint import Checkpoint
from qload.dtypes import storage_bytes
from qload.examination import open_checkpoint
from qload.geometry import Geometry, Kind, Part, replicated, single
from qload.hookspecs import ModuleInfo
from qload.plan import PlainTarget, Plan, Source, Target, make_plan
from qload.quantization import Quantization
from qload.resolution import resolve

HIDDEN, INNER, HEADS, KV_HEADS, HEAD, VOCABULARY, GROUP = 2048, 768, 32, 4, 128, 151936, 128
LAYERS_IN_A_FILE = 4
RANKS = (1, 2, 4, 8)
ATTENTION = {
    "q_proj": (HEADS * HEAD, HIDDEN),
    "k_proj": (KV_HEADS * HEAD, HIDDEN),
    "v_proj": (KV_HEADS * HEAD, HIDDEN),
    "o_proj": (HIDDEN, HEADS * HEAD),
}
EXPERT = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
NORMS = {
    "input_layernorm": HIDDEN,
    "post_attention_layernorm": HIDDEN,
    "self_attn.q_norm": HEAD,
    "self_attn.k_norm": HEAD,
}

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""dtype and shape by a tensor's name."""


def make_checkpoint(folder: Path, layers: int, experts: int) -> None:
    """Write the config, an index, and files of which only the headers take room."""
    placed: dict[str, str] = {}
    for first in range(0, layers, LAYERS_IN_A_FILE):
        tensors = {} if first else outer_tensors()
        for layer in range(first, min(first + LAYERS_IN_A_FILE, layers)):
            tensors |= layer_tensors(f"model.layers.{layer}", experts)
        name = f"model-{first // LAYERS_IN_A_FILE + 1:05}-of-{-(-layers // LAYERS_IN_A_FILE):05}.safetensors"
        write_header(folder / name, tensors)
        placed |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / "config.json").write_text(json.dumps(make_config(layers, experts)))


def outer_tensors() -> Shapes:
    return {
        "model.embed_tokens.weight": ("BF16", (VOCABULARY, HIDDEN)),
        "lm_head.weight": ("BF16", (VOCABULARY, HIDDEN)),
        "model.norm.weight": ("BF16", (HIDDEN,)),
    }


def layer_tensors(name: str, experts: int) -> Shapes:
    tensors: Shapes = {f"{name}.{norm}.weight": ("BF16", (size,)) for norm, size in NORMS.items()}
    tensors[f"{name}.mlp.gate.weight"] = ("BF16", (experts, HIDDEN))
    for leaf, shape in ATTENTION.items():
        tensors |= packed_tensors(f"{name}.self_attn.{leaf}", *shape)
    for expert in range(experts):
        for leaf, shape in EXPERT.items():
            tensors |= packed_tensors(f"{name}.mlp.experts.{expert}.{leaf}", *shape)
    return tensors


def packed_tensors(name: str, rows: int, columns: int) -> Shapes:
    return {
        f"{name}.weight_packed": ("I32", (rows, columns // 8)),
        f"{name}.weight_scale": ("BF16", (rows, columns // GROUP)),
        f"{name}.weight_shape": ("I64", (2,)),
    }


def write_header(path: Path, tensors: Shapes) -> None:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + storage_bytes(dtype, prod(shape))
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(table, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def make_config(layers: int, experts: int) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "intermediate_size": 6144,
        "moe_intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "num_experts": experts,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head", r"re:.*mlp\.gate$"],
        },
    }


def parse_headers(folder: Path) -> int:
    """The number of tensors in the headers, parsed and nothing more."""
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            count += len(json.loads(file.read(int.from_bytes(file.read(8), "little")))) - 1
    return count


def list_targets(layers: int, experts: int, quantization: Quantization) -> Iterator[Target]:
    """What a model wants: for each layer the attention's projections, and its experts in two stacks."""

    def target(name: str, geometry: Geometry, *sources: Source) -> Target:
        treatment = quantization.treat(ModuleInfo((sources[0].prefix,)))
        return Target(name, geometry, treatment, replicated(geometry), sources)

    for layer in range(layers):
        name = f"model.layers.{layer}"
        for leaf, (rows, columns) in ATTENTION.items():
            place = f"{name}.self_attn.{leaf}"
            yield target(place, single(rows, columns, dtype="BF16"), Source(place))
        for leaf, geometry in stacks(experts).items():
            below = f"{name}.mlp.experts"
            sources = [
                Source(f"{below}.{expert}.{part.name}", number, expert=expert)
                for expert in range(experts)
                for number, part in enumerate(geometry.parts)
            ]
            yield target(f"{below}.{leaf}", geometry, *sources)


def stacks(experts: int) -> Mapping[str, Geometry]:
    fused = (Part("gate_proj", INNER), Part("up_proj", INNER))
    return {
        "gate_up_proj": Geometry(HIDDEN, fused, experts, Kind.EXPERTS, "BF16"),
        "down_proj": Geometry(INNER, (Part("down_proj", HIDDEN),), experts, Kind.EXPERTS, "BF16"),
    }


def plan_load(checkpoint: Checkpoint, quantization: Quantization, layers: int, experts: int) -> Plan:
    plain = [
        PlainTarget(entry.name, entry.name, entry.shape, "BF16")
        for entry in checkpoint.tensors.values()
        if entry.name.endswith(".weight")
    ]
    return make_plan(checkpoint, quantization, list_targets(layers, experts, quantization), plain)


def measure(folder: Path, layers: int, experts: int, rounds: int) -> dict[str, list[float]]:
    registry = Registry.discover()
    checkpoint = open_checkpoint(folder, registry)

    def plan() -> Plan:
        # What one load learns of declarations is not for the next one.
        return plan_load(checkpoint, resolve(checkpoint, registry), layers, experts)

    if plan().findings or qload.validate(folder).findings or not qload.plan_ranks(folder, RANKS).fits:
        raise SystemExit("the checkpoint was made wrongly: there are findings")
    # What is kept for the plan is not to slow the garbage collection of the other ways.
    gc.freeze()
    return time_calls(
        {
            "parse the headers": lambda: parse_headers(folder),
            "qload.validate": lambda: qload.validate(folder),
            "qload.plan_ranks": lambda: qload.plan_ranks(folder, RANKS),
            "plan": plan,
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    since = measure_load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder, arguments.layers, arguments.experts)
        tensors = parse_headers(folder)
        found = measure(folder, arguments.layers, arguments.experts, arguments.rounds)
    print(f"{tensors} tensors; medians (least to greatest)")
    limit = statistics.median(found["parse the headers"])
    show(("what", "s", "times the parsing"), found, lambda seconds: f"{seconds / limit:.1f}", ".3f")
    if arguments.json:
        machine = describe_machine(("pydantic",), since=since)
        arguments.json.write_text(json.dumps({"machine": machine, "tensors": tensors, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
