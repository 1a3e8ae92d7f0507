"""Holds a checkpoint against its architecture, as a load does before it reads weights."""

import torch

from qload.checkpoint import Checkpoint
from qload.errors import CheckpointError, ModelError
from qload.findings import Finding, report
from qload.quantization import Quantization
from qload.registry import Registry
from qload.torch.loading.holding import MemoryReader
from qload.torch.loading.load import Load, LoadOptions
from qload.torch.models.loading import plan_load


def find_model_faults(checkpoint: Checkpoint, quantization: Quantization, registry: Registry) -> tuple[Finding, ...]:
    """What a load of the checkpoint on one rank would find before it takes memory for the weights.

    The model is built without memory, as transformers has it; code that comes with a checkpoint is never run.
    """
    options = LoadOptions(torch.device("cpu"), registry)
    loading = Load(checkpoint, MemoryReader({}), quantization, options)
    try:
        return plan_load(loading, None, True, by_experts=False).plan.findings
    except CheckpointError as error:
        return tuple(fault for fault in error.findings if isinstance(fault, Finding))
    except ModelError as error:
        file, found, remedy = checkpoint.config_path.name, error.found, error.remedy
        return (report("QL212", error.what, file=file, expected=error.expected, found=found, remedy=remedy),)
