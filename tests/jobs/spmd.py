"""Models that every rank has whole, and that the ranks of a mesh then divide."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from llama import Llama
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

import qload
from qload.errors import QloadError
from qload.geometry import Geometry, Part, Shard, replicated
from qload.layout import Cut
from qload.quantization import Quantization, unquantized
from qload.torch import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    ParallelLMHead,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
    VocabParallelEmbedding,
    make_experts,
)
from qload.torch.layers.linear import Linear
from qload.torch.parallel import Group


def mesh_of(group: Group) -> DeviceMesh:
    return init_device_mesh("cpu", (group.size,), mesh_dim_names=("tp",))


def plain() -> Quantization:
    return unquantized(qload.Registry.discover())


Model = TypeVar("Model", bound=nn.Module)


def fill(model: Model) -> Model:
    """The same random values on every rank, in tensors made anew; rows of padding are zero."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, qload.torch.Layer):
            module.allocate("cpu")
            for name in module.specs:
                tensor = module.get_parameter(name)
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
                if isinstance(module, VocabParallelEmbedding | ParallelLMHead):
                    tensor[module.vocabulary_size :] = 0
    return model


def load_llama(path: Path) -> Llama:
    model = Llama(path, qload.read_quantization(path))
    qload.load_weights(model, path, quantize_activations=False, ignore=["QL210"], kernels=())
    return model


def load_model(path: Path) -> Any:
    return qload.load(path, dtype=torch.float32, quantize_activations=False, kernels=())


def compute(model: Any, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        made = model(ids)
    logits: Tensor = getattr(made, "logits", made)
    return logits.clone()


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def count_bytes(model: nn.Module) -> int:
    """The bytes of this rank's parameters; what several layers share counts once."""
    return sum(local(each).nbytes for each in model.parameters())


def compute_both(group: Group, kind: str, path: Path, ids: Tensor) -> tuple[Tensor, Tensor, float]:
    """The logits before a model is divided and after, and how much of its bytes this rank still has."""
    model = load_llama(path) if kind == "fused" else load_model(path)
    before, whole = compute(model, ids), count_bytes(model)
    if qload.shard_model(model, mesh_of(group)) is not model:
        raise ValueError("another model came back")
    return before, compute(model, ids), count_bytes(model) / whole


def save_and_load(group: Group, path: Path, folder: Path, ids: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The logits of a divided model, those of another one after it was given the first one's tensors, and shapes."""
    model = qload.shard_model(load_llama(path), mesh_of(group))
    expected, state = compute(model, ids), model.state_dict()
    save(state, checkpoint_id=folder)
    other = load_llama(path)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.zero_()
    qload.shard_model(other, mesh_of(group))
    wanted = other.state_dict()
    load(wanted, checkpoint_id=folder)
    other.load_state_dict(wanted)
    shapes = {name: (tuple(each.shape), tuple(local(each).shape)) for name, each in state.items()}
    return expected, compute(other, ids), shapes


def make_linear(kind: str, bias: bool = True, **options: Any) -> Linear:
    site = Site(plain(), "a.layer")
    if kind == "qkv":
        return QKVParallelLinear(16, 4, 8, 2, site, bias=bias, **options)
    if kind == "merged":
        return MergedColumnParallelLinear(16, [("gate", 24), ("up", 8)], site, bias=bias, **options)
    if kind == "replicated":
        return ReplicatedLinear(16, 32, Site(plain(), "a.down_proj"), bias=bias, **options)
    if kind == "row":
        return RowParallelLinear(16, 32, site, bias=bias, input_is_parallel=False, **options)
    return ColumnParallelLinear(16, 32, site, bias=bias, **options)


def compute_linear(group: Group, kind: str, x: Tensor, options: Mapping[str, Any]) -> tuple[Any, Any, list[str]]:
    """What a layer makes of x before it is divided and after, and the names of its tensors then."""
    gathers = {} if kind in ("row", "replicated") else {"gather_output": True}
    layer = fill(make_linear(kind, **gathers, **options))
    before = detach(layer(x))
    qload.shard_model(layer, mesh_of(group))
    return before, detach(layer(x)), list(layer.state_dict())


def detach(made: Any) -> Any:
    return tuple(each if each is None else each.detach() for each in made) if isinstance(made, tuple) else made.detach()


class Tied(nn.Module):
    """A table, a head that shares it and has a bias, and one projection under two names."""

    def __init__(self, rows: int, multiple: int) -> None:
        super().__init__()
        self.table = VocabParallelEmbedding(rows, 16, Site(plain(), "table"), multiple=multiple)
        self.one = ColumnParallelLinear(16, 16, Site(plain(), "one"), gather_output=True)
        self.other = self.one
        self.third = ColumnParallelLinear(16, 16, Site(plain(), "third"), gather_output=True)
        self.head = ParallelLMHead(rows, 16, Site(plain(), "head"), bias=True, gather_output=True, multiple=multiple)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.third(self.other(self.one(self.table(ids)))))
        return logits


def make_tied(rows: int, multiple: int) -> Tied:
    model = fill(Tied(rows, multiple))
    model.third.weight = model.one.weight
    model.head.tie(model.table)
    return model


def compute_tied(group: Group, rows: int, multiple: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits before and after, and what is still one, with the numbers of a table's rows here and on all ranks."""
    model, ids = make_tied(rows, multiple), torch.arange(rows)[None]
    before = compute(model, ids)
    qload.shard_model(model, mesh_of(group))
    table = model.table.get_parameter("weight")
    held = model.table._parameters["weight"]
    said = {
        "one module": model.one is model.other,
        "one table": model.head._parameters["weight"] is held,
        "one parameter": model.third._parameters["weight"] is model.one._parameters["weight"],
        "rows": (len(table), held.shape[0] if held is not None else 0),
    }
    return before, compute(model, ids), said


def look_up(group: Group, added: int, dim: int) -> tuple[Tensor, Tensor]:
    """The rows of all tokens, some of them added, before a table is divided and after."""
    site = Site(plain(), "table")
    table = fill(VocabParallelEmbedding(65, 16, site, added=added, sharding_dim=dim, multiple=8))
    ids = torch.arange(table.num_embeddings)
    before = compute(table, ids)
    qload.shard_model(table, mesh_of(group))
    return before, compute(table, ids)


def compute_experts(group: Group, x: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
    """What experts make of x before they are divided and after, and the gradients of x and the weights with each."""
    made = []
    experts = fill(make_experts(4, 16, 8, Site(plain(), "moe"), gate=lambda y: torch.nn.functional.glu(y, -1)))
    for number in range(2):
        if number:
            qload.shard_model(experts, mesh_of(group))
        leaves = [each.clone().requires_grad_() for each in (x, weights)]
        y = experts(leaves[0], ids, leaves[1])
        (y * torch.linspace(-1, 1, y.shape[-1])).sum().backward()
        made.append((y.detach(), [each.grad for each in leaves]))
    return made[0][0], made[1][0], [made[0][1], made[1][1]]


def compute_on_axes(group: Group, shape: tuple[int, ...], axis: str, x: Tensor) -> tuple[Tensor, Tensor, Any]:
    """What a layer makes of x before and after, over one axis of a mesh of two, and how many of its rows are here."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("rows", "columns"))
    layer = fill(make_linear("qkv", gather_output=True))
    before = detach(layer(x))
    qload.shard_model(layer, mesh, axis=axis)
    return before, detach(layer(x)), (group.size, layer.get_submodule("q_proj").get_parameter("weight").shape[0])


def turn_around(geometry: Geometry, rank: int, size: int) -> Shard:
    """The last rank has the first rows."""
    turned = size - 1 - rank
    share = geometry.out_features // size
    whole = replicated(geometry, rank, size)
    return Shard(rank, size, (Cut(turned * share, (turned + 1) * share),), whole.in_)


class Odd(ColumnParallelLinear):
    """A subclass, of which all but the first of two may be divided."""


def make_refused(kind: str) -> Any:
    site, model = Site(plain(), "a"), nn.Module()
    model.first = fill(make_linear("qkv"))
    if kind == "uneven":
        model.second = fill(Odd(16, 6, site.at("odd")))
    elif kind == "unloaded":
        model.second = ColumnParallelLinear(16, 8, site.at("meta"))
    elif kind == "out of order":
        model.second = fill(Linear(16, [Part("", 8)], site.at("turned"), sharding=turn_around))
    elif kind == "a table outside":
        table = fill(VocabParallelEmbedding(8, 16, site.at("table")))
        model.second = ParallelLMHead(8, 16, site.at("head"))
        model.second.tie(table)
    elif kind == "a list":
        return nn.ParameterList([nn.Parameter(torch.ones(2))])
    elif kind == "a tensor":
        return torch.ones(2)
    elif kind == "no layer":
        return nn.Linear(2, 2)
    return model


def try_to_shard(group: Group, kind: str) -> tuple[QloadError | None, bool]:
    """The error, and whether the model is as it was."""
    model = make_refused(kind)
    if kind == "divided":
        qload.shard_model(model, mesh_of(group))
    before = describe(model)
    try:
        qload.shard_model(model, torch.ones(1) if kind == "no mesh" else mesh_of(group), axis=axis_of(kind))
    except QloadError as error:
        return error, describe(model) == before
    return None, False


def axis_of(kind: str) -> str | None:
    return "pp" if kind == "no axis" else None


def describe(model: Any) -> Any:
    if not isinstance(model, nn.Module):
        return None
    layers = [each for each in model.modules() if isinstance(each, qload.torch.Layer)]
    names = {name: (id(each), tuple(each.shape)) for name, each in model.named_parameters()}
    return names, [(id(each.shard), each.group.size, each.apart) for each in layers], list(dict(model.named_modules()))


def drop_index(group: Group, path: Path, name: str, tensors: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A row-parallel layer whose order by activation is none, before it is divided and after."""
    quantization = qload.read_quantization(path)
    layer = RowParallelLinear(x.shape[-1], 256, Site(quantization, name), input_is_parallel=False)
    qload.load_tensors(layer, tensors, quantization, kernels=())
    before = layer(x)
    qload.shard_model(layer, mesh_of(group))
    made: Tensor = layer(x)
    return before, made


def compute_named(group: Group, x: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, ...]]]:
    """A layer that is whole on every rank, with a plan of one's own and without: the shapes that are left."""
    shapes = []
    for plan in (None, lambda name, geometry, specs, size: qload.geometry.row):
        layer = fill(make_linear("replicated"))
        before = detach(layer(x))
        qload.shard_model(layer, mesh_of(group), plan=plan)
        after = detach(layer(x))
        shapes.append(tuple(layer.get_parameter("weight").shape))
    return before, after, shapes
