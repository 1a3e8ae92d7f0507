"""Builds transformers models without weights, and finishes them once theirs are there."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as hf_init

from qload.checkpoint import Checkpoint
from qload.checkpoint.folder import CONFIG
from qload.configs import SECTIONS
from qload.errors import ModelError
from qload.torch.dtypes import dtype_code, is_written, make_unwritten, torch_dtype


def build_model(checkpoint: Checkpoint, dtype: torch.dtype | str | None) -> PreTrainedModel:
    """The checkpoint's architecture on the meta device, not initialised, not tied, not quantized.

    Code that comes with a checkpoint is never run. Raises ModelError for an architecture that transformers
    does not have.
    """
    config = read_config(checkpoint)
    chosen = choose_dtype(dtype, getattr(config, "dtype", None), checkpoint)
    try:
        with torch.device("meta"), hf_init.no_init_weights(), hf_init.no_tie_weights():
            model: PreTrainedModel = _model_class(config)._from_config(config, dtype=chosen)
    except Exception as error:  # whatever the code of an architecture makes of a config that does not fit it
        raise ModelError(
            f"transformers cannot build the model ({describe_error(error)})",
            where=str(checkpoint.config_path),
            found=_name_architecture(config),
            remedy="check the config's sizes, and that this version of transformers has the architecture",
        ) from error
    _read_generation_config(model, checkpoint.folder)
    model.eval()
    return model


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The model's config, as the checkpoint was opened, without what it says of quantization.

    Transformers would act on that. It reads configs from folders alone, so that this one gets a folder.
    """
    try:
        with TemporaryDirectory() as folder:
            (Path(folder) / CONFIG).write_text(json.dumps(_without_quantization(checkpoint.config)))
            config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its checks of a config raise errors of many kinds
        raise ModelError(
            f"transformers cannot read the config ({describe_error(error)})",
            where=str(checkpoint.config_path),
            remedy="check model_type and architectures; code that comes with a checkpoint is never run",
        ) from error
    config.name_or_path = str(checkpoint.path)
    return config


def _without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        key: _without_quantization(value) if isinstance(value, Mapping) else value for key, value in config.items()
    }
    return {key: value for key, value in nested.items() if key not in SECTIONS}


def choose_dtype(
    asked: torch.dtype | str | None, written: torch.dtype | str | None, checkpoint: Checkpoint
) -> torch.dtype:
    """The dtype that is asked for, or written in the config, or that in which most values are stored."""
    for dtype in (asked, written):
        if dtype is not None:
            return torch_dtype(dtype_code(dtype))
    stored: Counter[str] = Counter()
    for entry in checkpoint.tensors.values():
        if entry.dtype in ("F32", "BF16", "F16"):
            stored[entry.dtype] += entry.nbytes
    return torch_dtype(max(stored, key=lambda code: stored[code], default="F32"))


def kept_dtype(model: PreTrainedModel, name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a module or tensor: some models keep a few of theirs in float32."""
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    for pattern, kept in plan.items():
        if re.search(rf"(^|\.){pattern}($|\.)", name):
            return kept
    return dtype


def finish_model(model: PreTrainedModel, device: torch.device) -> None:
    """Let the model compute what no checkpoint stores, as rotary frequencies, and leave nothing to train.

    With parameters that ask for gradients, each forward would keep every weight that it made dense.

    Raises ModelError for whatever stays without a value.
    """
    waiting = {
        name: missing
        for name, module in model.named_modules()
        if (missing := [leaf for leaf, tensor in _own_tensors(module) if tensor.is_meta])
    }
    unfinished = {"", *(parent for name in waiting for parent in _and_parents(name))}
    for name, module in model.named_modules():
        _prepare(module, waiting.get(name, []), device)
        # Some models write what their parts miss when their own turn comes.
        module._is_hf_initialized = name not in unfinished
    if waiting:
        # Computed on the host everywhere, so that every device gets the same numbers.
        with torch.device("cpu"):
            model.initialize_weights()
    for name, leaves in waiting.items():
        _check_written(name, model.get_submodule(name), leaves)
    model.requires_grad_(False)


def _prepare(module: nn.Module, missing: list[str], device: torch.device) -> None:
    """Give tensors without data some that cannot pass for it, and mark all others as not to be written."""
    for _, tensor in _own_tensors(module):
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    for leaf in missing:
        _put_unwritten(module, leaf, device)


def _and_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _read_generation_config(model: PreTrainedModel, path: Path) -> None:
    if not (path / "generation_config.json").exists():
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # as for config.json
        raise ModelError(
            f"transformers cannot read the file ({describe_error(error)})",
            where=str(path / "generation_config.json"),
            remedy="mend it, or take it away: the model's own settings serve without it",
        ) from error


def _own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    held = (*module._parameters.items(), *module._buffers.items())
    return [(name, tensor) for name, tensor in held if tensor is not None]


def _put_unwritten(module: nn.Module, leaf: str, device: torch.device) -> None:
    old = getattr(module, leaf)
    new = make_unwritten(old, device)
    if leaf in module._buffers:
        module._buffers[leaf] = new
    else:
        module._parameters[leaf] = nn.Parameter(new, requires_grad=old.requires_grad)


def _check_written(name: str, module: nn.Module, leaves: Iterable[str]) -> None:
    for leaf in leaves:
        if not is_written(getattr(module, leaf)):
            raise ModelError(
                "the checkpoint does not store it, and the model does not compute it", where=f"{name}.{leaf}"
            )


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that the config names, or the causal language model of its type."""
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel) and found.config_class is not None:
            return found
    mapping: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise ValueError(f"there is no causal language model for {config.model_type}")
    model_class: type[PreTrainedModel] = mapping[type(config)]
    return model_class


def _name_architecture(config: PreTrainedConfig) -> str:
    """What the config says of its architecture, whatever stands there."""
    found = config.architectures or config.model_type
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found)


def describe_error(error: BaseException) -> str:
    """The kind of an error that is not ours, and the first line of its text."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
