"""Loads a checkpoint as the transformers model that it is of, with qload's layers in it."""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from qload.checkpoint import Modules
from qload.errors import ModelError
from qload.plan import PlainTarget, Plan
from qload.presets import Asked
from qload.quantization import Quantization
from qload.registry import Registry
from qload.roles import read_heads
from qload.torch.dtypes import dtype_code
from qload.torch.garbage import putting_off_collections
from qload.torch.loading.load import Load, LoadOptions, choose_device
from qload.torch.loading.modules import target_of
from qload.torch.loading.orders import ReaderFactory
from qload.torch.loading.progress import LoadReport, ProgressHook
from qload.torch.loading.readers import AUTO
from qload.torch.models.building import build_model, finish_model, kept_dtype
from qload.torch.models.caching import quantize_caches
from qload.torch.models.converting import Stage, make_stages
from qload.torch.models.generating import generate_together
from qload.torch.models.naming import Names, match_names
from qload.torch.models.neighbours import join_neighbours
from qload.torch.models.replacing import Replacements, make_replacements, put
from qload.torch.models.tying import Ties, find_ties, settle_names, tie
from qload.torch.parallel import Group, agreeing, device_of, group_of

_REPORT = "_qload_report"
# Buffers that older checkpoints store, and that models compute now.
_ONCE_STORED = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"\.attn\.masked_bias$", r"\.attn\.bias$")


def load(
    path: str | Path,
    *,
    mesh: DeviceMesh | None = None,
    mesh_axis: str | None = None,
    expert_parallel: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    quantize_activations: bool = True,
    quantization: Asked | Quantization | None = None,
    registry: Registry | None = None,
    progress: ProgressHook | None = None,
    allow_pickle: bool = False,
    ignore: Sequence[str] = (),
    synchronize: Callable[[], None] | None = None,
    kernels: Sequence[str] | None = None,
    reader: str | ReaderFactory = AUTO,
) -> PreTrainedModel:
    """Load the checkpoint in the folder or file `path` as a transformers model.

    Linear layers, embeddings, experts and the head are qload's, with the weights as they lie on disk; the
    model is ready for `model(...)` and `model.generate(...)`. It computes in `dtype`, by default the config's.
    With `quantize_activations=False`, schemes that quantize activations, keys and values compute with the weights
    only. With `quantization`, a plain checkpoint is quantized while it is loaded, layer by layer: a preset's name
    ("int4", ...; `qload methods` lists them), or what its `quantization_config` would say.
    `ignore` lists the codes of waivable findings. `synchronize` is called after each copy, for devices that would else
    put the copies off. `kernels` names those that quantized layers may compute with, by default all that there are;
    with none of them, `kernels=()`, layers keep their tensors as they are stored, and turn the weight dense at every
    call. `reader` says what reads the files: a name, of which docs/models.md says what each is for, or a function that
    makes a `Reader` of a folder and a device. `qload.report(model)` says what was loaded, and what computes.

    With a `mesh`, every rank along its `mesh_axis` (of several axes, by default "tp") calls this, reads and holds its
    share, and computes with the others what one process would; `expert_parallel` gives ranks whole experts of mixtures
    in place of a share of each. `device` is by default the CPU, or the rank's own of the mesh. All ranks must
    generate at the same time, from the same input; what they sample is then the same.

    Raises CheckpointError, with all findings at once, before memory is taken for the weights, or, for faults
    that only the data shows, after reading; MethodError where the method cannot be had; ModelError where
    transformers lacks the architecture; ShardError, before anything is read, where the model cannot be divided over so
    many ranks; ParallelError on the other ranks where one of them fails.
    """
    group = Group() if mesh is None else group_of(mesh, mesh_axis)
    chosen = device if device is not None else "cpu" if mesh is None else device_of(mesh)
    with agreeing(group):
        options = LoadOptions(
            choose_device(chosen),
            registry,
            progress,
            allow_pickle,
            ignore,
            quantization,
            synchronize,
            group,
            kernels,
            reader,
        )
        planned = plan_load(Load.begin(path, options), dtype, quantize_activations, by_experts=expert_parallel)
    with agreeing(group):
        return planned.run()


@dataclass(frozen=True, slots=True)
class Planned:
    """A model that is built and planned, and of which nothing has been read."""

    loading: Load
    model: PreTrainedModel
    made: Replacements
    stages: Mapping[str, Stage]
    ties: Ties
    plan: Plan

    def run(self) -> PreTrainedModel:
        """Read the weights, and finish the model."""
        model = self.model
        self.loading.copy(self.plan, self._find)
        for stage in self.stages.values():
            stage.finish(model)
        _finish(model, self.made, self.ties, self.loading)
        setattr(model, _REPORT, self.loading.report(model, self.plan, model.dtype))
        return model

    def _find(self, name: str) -> nn.Module:
        return self.made.layers.get(name) or self.stages.get(name) or self.model.get_submodule(name)


@putting_off_collections()
def plan_load(
    loading: Load, dtype: torch.dtype | str | None, quantize_activations: bool, *, by_experts: bool
) -> Planned:
    """Build the model, and plan what is read into it. Raises as `load` does before it reads."""
    model = build_model(loading.checkpoint, dtype)
    loading.mark("model")
    names = settle_names(model, match_names(model, loading.checkpoint))
    ties = find_ties(model, names)
    loading.mark("names")
    made = make_replacements(
        model,
        names,
        loading.quantization,
        model.dtype,
        skipped=ties.shared,
        shared=ties.names,
        group=loading.options.group,
        heads=read_heads(loading.checkpoint.config),
        by_experts=by_experts,
    )
    for layer in made.layers.values():
        layer.quantize_activations = quantize_activations
    if loading.options.group.size > 1:
        join_neighbours(model, made.layers)
    replaced = (*made.modules, *made.refused)
    stages = make_stages(model, names.converted, loading.checkpoint, replaced)
    loading.mark("layers")
    plan = loading.plan(
        [target_of(name, layer) for name, layer in made.layers.items()],
        [
            *_plain_targets(model, names, replaced, {*ties.names, *_targets(stages)}),
            *(target for stage in stages.values() for target in stage.targets),
        ],
        findings=[
            *ties.findings,
            *made.findings,
            *(finding for stage in stages.values() for finding in stage.check(model)),
        ],
        is_expected=_expected(model, names, made.refused, loading.checkpoint.modules),
    )
    return Planned(loading, model, made, stages, ties, plan)


def report(model: nn.Module) -> LoadReport:
    """What `load` did to make this model. Raises ModelError for a model that it did not make."""
    found = getattr(model, _REPORT, None)
    if not isinstance(found, LoadReport):
        raise ModelError("qload.load did not make this model", found=type(model).__name__)
    return found


def _finish(model: PreTrainedModel, made: Replacements, ties: Ties, loading: Load) -> None:
    if loading.options.group.size > 1:
        generate_together(model, loading.options.group)
    for name, module in made.modules.items():
        put(model, name, module)
    quantize_caches(model)
    tie(model, ties, loading.quantization)
    finish_model(model, loading.options.device)
    setattr(model, "save_pretrained", _refuse_saving)  # noqa: B010
    # transformers then refuses `.half()` and `.float()`, which would cast what a method stores.
    setattr(model, "is_quantized", loading.quantization.config is not None)  # noqa: B010
    loading.mark("finish")


def _targets(stages: Mapping[str, Stage]) -> Iterator[str]:
    """The model's tensors that are converted from what is read to the stages."""
    return (name for stage in stages.values() for name in stage.conversion.targets)


def _refuse_saving(*_: object, **__: object) -> None:
    """Stands in for a model's own way to save itself, which would leave out how its weights are quantized."""
    raise ModelError(
        "a loaded model is not written as a checkpoint",
        remedy="keep the folder that it came from; torch.save(model) keeps the model itself",
    )


def _plain_targets(
    model: PreTrainedModel, names: Names, replaced: Iterable[str], shared: Container[str]
) -> Iterator[PlainTarget]:
    """Every tensor of the model that no layer of ours holds, and that is not another one's."""
    below = tuple(f"{name}." for name in replaced)
    optional = _pattern(model._keys_to_ignore_on_load_missing)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.startswith(below) or name in shared:
            continue
        dtype = kept_dtype(model, name, tensor.dtype) if tensor.is_floating_point() else tensor.dtype
        yield PlainTarget(
            name,
            names.tensors.get(name, name),
            tuple(tensor.shape),
            dtype_code(dtype),
            required=not optional.search(name),
        )


def _expected(model: PreTrainedModel, names: Names, refused: Iterable[str], modules: Modules) -> Callable[[str], bool]:
    """Which stored tensors may be left over without a finding of their own.

    Those that the model's class says it does not read, and those of modules that were refused already.
    """
    pattern = _pattern((*_ONCE_STORED, *(model._keys_to_ignore_on_load_unexpected or ())))
    prefixes = [source.prefix for name in refused for source in names.below(name)]
    below = tuple(f"{prefix}." for prefix in prefixes)
    own = {name for prefix in prefixes for name in modules.get(prefix, {}).values()}
    return lambda name: pattern.search(name) is not None or name.startswith(below) or name in own


def _pattern(patterns: Iterable[str] | None) -> re.Pattern[str]:
    """One regex for any of several; one that matches nothing for none."""
    return re.compile("|".join(f"(?:{each})" for each in patterns or ()) or r"(?!)")
