"""Loads a model that its user wrote with qload's layers: from a checkpoint, or from tensors in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from qload.checkpoint import Checkpoint
from qload.plan import PlainTarget, Target
from qload.presets import Asked
from qload.quantization import Quantization
from qload.registry import Registry
from qload.torch.dtypes import dtype_code
from qload.torch.garbage import putting_off_collections
from qload.torch.kernels import Table, find_kernels
from qload.torch.layers import Layer, ParallelLMHead
from qload.torch.loading.checkpoints import list_entries
from qload.torch.loading.holding import MemoryReader
from qload.torch.loading.load import Load, LoadOptions, choose_device
from qload.torch.loading.orders import ReaderFactory
from qload.torch.loading.progress import LoadReport, ProgressHook
from qload.torch.loading.readers import AUTO
from qload.torch.loading.sharing import find_sharing


def load_weights(
    module: nn.Module,
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    quantize_activations: bool = True,
    quantization: Asked | Quantization | None = None,
    prefix: str = "",
    registry: Registry | None = None,
    progress: ProgressHook | None = None,
    allow_pickle: bool = False,
    ignore: Sequence[str] = (),
    synchronize: Callable[[], None] | None = None,
    kernels: Sequence[str] | None = None,
    reader: str | ReaderFactory = AUTO,
) -> LoadReport:
    """Load the checkpoint in the folder or file `path` into a module made of qload's layers and ordinary ones.

    Every layer reads its own shard of the modules it was built for; other parameters and persistent buffers
    are read under their own names, with `prefix` before them. Tensors that the module has under several names,
    and heads tied to an embedding, are read once and stay one. `quantization` is the one that the layers were
    built with, where the checkpoint is plain and they are to be quantized: see `qload.choose_quantization`.
    `ignore` lists codes of waivable findings. `synchronize` is called after each copy, for devices that would else
    put the copies off. `kernels` and `reader` are as for `qload.load`.

    Raises CheckpointError with all findings before memory is taken for the weights, or, for faults that only
    the data shows, after reading.
    """
    options = LoadOptions(
        choose_device(device),
        registry,
        progress,
        allow_pickle,
        ignore,
        quantization,
        synchronize,
        kernels=kernels,
        reader=reader,
    )
    loading = Load.begin(path, options)
    return _load_module(loading, module, prefix, quantize_activations)


def load_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    quantization: Quantization,
    *,
    device: torch.device | str = "cpu",
    quantize_activations: bool = True,
    prefix: str = "",
    synchronize: Callable[[], None] | None = None,
    kernels: Sequence[str] | None = None,
    registry: Registry | None = None,
) -> LoadReport:
    """As `load_weights`, from whole tensors in memory under the names that a checkpoint would give them.

    `registry` has the plugins that add kernels: all that are installed, if none is given.
    """
    checkpoint = Checkpoint(Path("memory"), {}, list_entries(tensors))
    options = LoadOptions(choose_device(device), synchronize=synchronize)
    is_plain = kernels is not None and not kernels
    table = Table() if is_plain else find_kernels(registry or Registry.discover(), quantization.method, kernels)
    loading = Load(checkpoint, MemoryReader(tensors), quantization, options, table)
    return _load_module(loading, module, prefix, quantize_activations)


@putting_off_collections()
def _load_module(loading: Load, module: nn.Module, prefix: str, quantize_activations: bool) -> LoadReport:
    layers = {name: child for name, child in module.named_modules() if isinstance(child, Layer) and _has_own(child)}
    for layer in layers.values():
        layer.quantize_activations = quantize_activations
    stored = loading.checkpoint.tensors
    sharing = find_sharing(module, layers, prefix, stored)
    floats = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    dtype = next(floats, torch.get_default_dtype())
    plan = loading.plan(
        [target_of(name, layer) for name, layer in layers.items()],
        _plain_targets(module, (*layers, *sharing.owners), prefix),
        findings=sharing.findings(stored, prefix),
        is_expected=lambda name: name.removeprefix(prefix) in sharing.owners,
    )
    loading.copy(plan, module.get_submodule)
    sharing.restore(module)
    _move_computed(module, loading.options.device)
    return loading.report(module, plan, dtype)


def _has_own(layer: Layer) -> bool:
    """Whether a layer has tensors of its own, and is not a head tied to a table."""
    return not isinstance(layer, ParallelLMHead) or layer.table is None


def target_of(name: str, layer: Layer) -> Target:
    """What a layer wants of a checkpoint; `name` is its name in the model."""
    return Target(name, layer.geometry, layer.treatment, layer.loaded_shard, layer.sources)


def _plain_targets(module: nn.Module, others: Iterable[str], prefix: str) -> Iterator[PlainTarget]:
    """Every tensor that is neither one of the `others` nor below one."""
    taken = tuple(f"{name}." if name else "" for name in others)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not f"{name}.".startswith(taken):
            owner, _, leaf = name.rpartition(".")
            head = module.get_submodule(owner)
            # A tied head's own bias is read whole, and cut afterwards.
            is_whole = isinstance(head, ParallelLMHead) and leaf == "bias"
            shape = (head.vocabulary_size,) if is_whole else tuple(tensor.shape)
            yield PlainTarget(name, prefix + name, shape, dtype_code(tensor.dtype))


def _move_computed(module: nn.Module, device: torch.device) -> None:
    """Bring the buffers that no checkpoint stores to where the weights are."""
    for child in module.modules():
        for name in child._non_persistent_buffers_set:
            buffer = child._buffers[name]
            if buffer is not None and not buffer.is_meta:
                child._buffers[name] = buffer.to(device)
