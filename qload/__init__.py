"""qload loads quantized checkpoints into PyTorch through plugins, and says what is wrong with them first.

`load`, `load_weights`, `dequantize` and `report` import torch when they are first used; nothing else does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from qload.catalogue import Severity
from qload.errors import (
    CapabilityError,
    CheckpointError,
    LayoutError,
    MethodConflictError,
    MethodError,
    ModelError,
    ParallelError,
    ParameterError,
    PluginError,
    QloadError,
    ShardError,
    TokenError,
    UnknownMethodError,
)
from qload.examination import read_quantization
from qload.findings import Finding
from qload.presets import choose_quantization
from qload.preview import RankPlans, plan_ranks
from qload.quantization import Quantization
from qload.registry import Registry
from qload.validation import Report, validate

if TYPE_CHECKING:
    from qload.torch.loading.modules import load_tensors, load_weights
    from qload.torch.loading.progress import LoadReport, Progress
    from qload.torch.models.loading import load, report
    from qload.torch.spmd.model import shard_model
    from qload.torch.weights import dequantize

_TORCH = {
    "LoadReport": "qload.torch.loading.progress",
    "Progress": "qload.torch.loading.progress",
    "dequantize": "qload.torch.weights",
    "load": "qload.torch.models",
    "load_tensors": "qload.torch.loading",
    "load_weights": "qload.torch.loading",
    "report": "qload.torch.models",
    "shard_model": "qload.torch.spmd",
}

__all__ = [
    "CapabilityError",
    "CheckpointError",
    "Finding",
    "LayoutError",
    "LoadReport",
    "MethodConflictError",
    "MethodError",
    "ModelError",
    "ParallelError",
    "ParameterError",
    "PluginError",
    "Progress",
    "QloadError",
    "Quantization",
    "RankPlans",
    "Registry",
    "Report",
    "Severity",
    "ShardError",
    "TokenError",
    "UnknownMethodError",
    "choose_quantization",
    "dequantize",
    "load",
    "load_tensors",
    "load_weights",
    "plan_ranks",
    "read_quantization",
    "report",
    "shard_model",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_TORCH[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
