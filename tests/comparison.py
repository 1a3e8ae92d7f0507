"""One measurement of a checkpoint against its producer's reference: the tests hold it, and docs/formats.md shows it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from samples import Reference, read_reference, read_runtime, relative_error
from torch import Tensor

import qload
from qload.torch import Layer
from qload.torch.loading.progress import LoadReport

ROUNDED = ("ct-w4a16-24-marlin", "ct-w4a16-g32-asym-actorder-group", "gptqmodel-fp8-block")
"""Their references are of other scales than are stored: of those in memory before they were rounded to bfloat16 and
saved, or of those stored in float32 after. Each weight is within one step of bfloat16, 2**-7 of its value."""

LOGITS_TOLERANCE = {
    "awq": 2e-3,
    "bitnet": 1e-6,
    "bitsandbytes": 1e-6,
    "compressed-tensors": 1e-6,
    "fp8": 2e-3,
    "gguf": 1e-6,
    "gptq": 2e-3,
    "hqq": 1e-6,
    "modelopt": 1e-6,
    "mxfp4": 1e-6,
    "quanto": 1e-6,
    "quark": 1e-6,
    "torchao": 2e-3,
    "unquantized": 1e-6,
}
"""Of the logits' norm, all in float32. Where it is 1e-6, the references hold the weights that we compute with, so that
only the order of summation differs. The others hold weights that their runtime computed in bfloat16 from scales rounded
to it, by up to 2**-9; we compute them in the scales' own dtype."""

OTHER_TOLERANCE = {
    "autoround-llmc-w4a16": 2e-3,
    "ct-nvfp4": 2e-3,
    "ct-qwen3moe-nvfp4": 2e-2,
    "ct-w4a16-24-marlin": 2e-3,
    "ct-w4a16-g32-asym-actorder-group": 2e-3,
    "modelopt-fp8-block": 2e-3,
    "quark-int8": 2e-3,
}
"""Checkpoints whose references were computed in bfloat16: most, their weights alone, from scales of another
dtype; ct-qwen3moe-nvfp4's, the whole model. That of modelopt-fp8-block is of ModelOpt's simulation in bfloat16 from
before the export, in which up to 1.4 % of a module's weights are one step of fp8 from those that it then stored: with
the simulation's own weights its logits are had to the last bit."""


@dataclass(frozen=True)
class Comparison:
    """What a loaded checkpoint is, beside what its producer's decoder made of it.

    `weights` is how many the reference holds, and `weight_error` the greatest relative difference of any, computed in
    the reference's dtype; `logits_error` is relative to the logits' norm. `report` is of a load in the config's dtype.
    """

    name: str
    producer: str
    report: LoadReport
    weights: int
    weight_error: float
    logits_error: float

    @property
    def tolerance(self) -> float:
        return OTHER_TOLERANCE.get(self.name, LOGITS_TOLERANCE[self.report.method])


def load(path: Path, **options: Any) -> Any:
    """The checkpoint, computing in float32 with the weights alone, as they are stored: without kernels."""
    settings = {"dtype": torch.float32, "quantize_activations": False, "kernels": ()}
    return qload.load(path, **{**settings, **options})


def compute(model: Any, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(ids).logits
    return logits


def compare(path: Path) -> Comparison:
    reference = read_reference(path)
    model = load(path, **({"dtype": torch.bfloat16, "quantize_activations": True} if reference.is_run else {}))
    return Comparison(
        name=path.name,
        producer=read_producer(path),
        report=qload.report(qload.load(path, kernels=())),
        weights=len(reference.weights),
        weight_error=compare_weights(model, reference),
        logits_error=relative_error(compute(model, reference.input_ids).float(), reference.logits),
    )


@dataclass(frozen=True)
class RuntimeComparison:
    """How far a checkpoint's logits are from its producer's own runtime: relative to their norm, by what is computed.

    `on` and `off` are with and without quantized activations in bfloat16, `on_wide` and `off_wide` in float32.
    """

    name: str
    on: float
    off: float
    on_wide: float
    off_wide: float


def compare_runtime(path: Path) -> RuntimeComparison | None:
    """None where no activations are quantized, or the producer's runtime left no logits."""
    runtime = read_runtime(path)
    if runtime is None:
        return None
    ids, expected = runtime
    settings = [(dtype, quantized) for dtype in (torch.bfloat16, torch.float32) for quantized in (True, False)]
    found = [compute(load(path, dtype=dtype, quantize_activations=quantized), ids) for dtype, quantized in settings]
    if torch.equal(found[0], found[1]):
        return None
    return RuntimeComparison(path.name, *(relative_error(logits.float(), expected) for logits in found))


def compare_weights(model: Any, reference: Reference) -> float:
    worst = 0.0
    for name, expected in reference.weights.items():
        found = find_weight(model, name, expected.dtype)[: len(expected)]
        if not torch.equal(found, expected):
            difference = (found.double() - expected.double()).abs() / expected.double().abs().clamp_min(1e-12)
            worst = max(worst, float(difference.max()))
    return worst


def find_weight(model: Any, name: str, dtype: torch.dtype) -> Tensor:
    """The weight that a module of the checkpoint fills: a layer's, or a part of an expert's in a stack."""
    stacked = re.fullmatch(r"(?P<stack>.+)\[(?P<expert>\d+)(,:64)?\]", name)
    if stacked is not None:
        # As the model has it, which is transposed.
        return find_weight(model, stacked["stack"], dtype)[int(stacked["expert"])].T
    layers = (module for module in model.modules() if isinstance(module, Layer))
    layer, source = next((each, source) for each in layers for source in each.sources if source.prefix == name)
    weight = qload.dequantize(layer, dtype=dtype)
    if source.expert is None:
        return weight
    parts: tuple[Tensor, ...] = weight[source.expert].split([part.size for part in layer.geometry.parts])
    return parts[source.part]


def read_producer(path: Path) -> str:
    provenance = path / "PROVENANCE.md"
    if not provenance.exists():
        return "trained for these tests"
    lines = provenance.read_text().splitlines()
    return next(line.removeprefix("Producer: ") for line in lines if line.startswith("Producer: "))
