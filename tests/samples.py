"""The real checkpoints that the tests run on, and the references of their producers."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from qload import Quantization, Registry
from qload.checkpoint import Checkpoint
from qload.resolution import resolve

DATA = Path(__file__).parent / "data"
WIDER = os.environ.get("QLOAD_CHECKPOINTS")
"""A folder of further checkpoints, each in a folder of its own."""

SWEEPS_ALL = os.environ.get("QLOAD_SWEEP") == "all"
"""Whether laws that take long are to hold for all checkpoints too, and not for a few of each kind."""

DEMO = DATA / "ct-w4a16-g128-asym"

BROKEN = {"hf-fp8-block-qwen3moe": {"QL303"}}
"""Broken checkpoints, with what is found: here, scales of blocks that have one dimension."""

WARNED = {f"autoawq-{name}-g128": {"QL108"} for name in ("gemm", "gemv", "gemvfast")}
"""Checkpoints that load, and whose producer left a fault in them: here, dtype bfloat16 beside torch_dtype float16."""

ALIASES = {"auto-round": ("awq", "compressed-tensors", "fp8", "gptq")}
"""The methods that load what is written under another name."""

SIDE_FILES = {"quanto_qmap.json": "quanto"}
"""The methods that checkpoints are of which name none, by the file beside the weights that says so."""


@dataclass(frozen=True)
class Reference:
    """What a producer's own decoder made of a checkpoint: logits, and weights, some cut to 64 rows.

    `is_run` says that the logits are those of the producer's runtime, in bfloat16 and with quantized activations.
    """

    input_ids: Tensor
    logits: Tensor
    weights: dict[str, Tensor]
    is_run: bool


def samples() -> list[Path]:
    """The checkpoints in tests/data, and those in the folder that QLOAD_CHECKPOINTS names."""
    folders = [DATA, *([Path(WIDER)] if WIDER else [])]
    found = {path.name: path for folder in folders for path in sorted(folder.iterdir()) if path.is_dir()}
    return list(found.values())


def is_swept(path: Path) -> bool:
    """Whether a law that takes long holds for a checkpoint: tests/data has one of each way to store."""
    return SWEEPS_ALL or (DATA / path.name).is_dir()


def is_sound(path: Path) -> bool:
    return path.name not in BROKEN


def flaws(path: Path) -> set[str]:
    """The codes of what is wrong with a checkpoint that loads."""
    return WARNED.get(path.name, set())


def supported() -> list[Path]:
    """Those that load, and that have something to be compared with."""
    return [path for path in samples() if is_sound(path) and (path / "reference.safetensors").exists()]


def read_reference(path: Path) -> Reference:
    """The reference of a checkpoint; logits are those of a plain model with the dequantized weights, in float32.

    One checkpoint has those of a model in bfloat16 alone, another those of its runtime.
    """
    tensors = load_file(path / "reference.safetensors")
    weights = {
        name.removeprefix("dequant.").removesuffix("[:64]").removesuffix(".weight"): tensor
        for name, tensor in tensors.items()
        if name.startswith("dequant.")
    }
    names = ("logits_dequant_fp32", "logits_fp32", "logits_own_decode_fp32", "logits_dequant_bf16", "logits_runtime")
    name = next(name for name in names if name in tensors)
    return Reference(tensors["input_ids"], tensors[name], weights, name == names[-1])


def read_runtime(path: Path) -> tuple[Tensor, Tensor] | None:
    """The input and logits of the producer's own runtime, in bfloat16 and with quantized activations, if it has any."""
    tensors = load_file(path / "reference.safetensors")
    return (tensors["input_ids"], tensors["logits_runtime"]) if "logits_runtime" in tensors else None


def make_quantization(section: dict[str, Any], registry: Registry | None = None) -> Quantization:
    """The quantization of a checkpoint that has this section in its config, and no tensors yet."""
    checkpoint = Checkpoint(Path("none"), {"quantization_config": section}, {})
    return resolve(checkpoint, registry or Registry.discover())


def read_config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


def written_method(path: Path) -> str:
    """The method that a checkpoint says it is of."""
    beside = [method for name, method in SIDE_FILES.items() if (path / name).exists()]
    if any(path.glob("*.gguf")):
        return "unquantized" if path.name == "gguf-bf16" else "gguf"
    method: str = read_config(path).get("quantization_config", {}).get("quant_method", *(beside or ["unquantized"]))
    return method


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The Frobenius norm of the difference, over the expected one's."""
    difference = torch.linalg.vector_norm(found.double() - expected.double())
    return float(difference / torch.linalg.vector_norm(expected.double()))
