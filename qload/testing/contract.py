"""Laws that hold for every method, checked on random tensors."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.declare import ParameterSpec
from qload.errors import PluginError, QloadError
from qload.geometry import Geometry, Kind, Part, Sharding, column, expert_parallel, row, single
from qload.hookspecs import ModuleInfo
from qload.layout import Dim
from qload.plan import Source
from qload.quantization import Quantization, Treatment
from qload.sharding import fitting_sizes
from qload.testing.agreement import sum_shares
from qload.testing.answers import check_answers
from qload.testing.tensors import make_tensors
from qload.testing.weights import check_weight
from qload.torch.layers import ExpertLinear, Experts, Layer, VocabParallelEmbedding, apply_one_by_one
from qload.torch.loading.modules import load_tensors
from qload.torch.parallel import Group
from qload.torch.sites import Site

GEOMETRIES = (single(256, 512), single(192, 384))
SIZES = (1, 2, 3, 4)
EXPERTS = 4


class ContractError(QloadError):
    """A method that breaks the contract; `faults` says how, each with the law."""

    def __init__(self, method: str, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__(f"{method} breaks the contract: {'; '.join(self.faults)}")


def check_method(
    quantization: Quantization,
    *,
    module: ModuleInfo | None = None,
    geometries: Sequence[Geometry] = GEOMETRIES,
    sizes: Sequence[int] = SIZES,
) -> None:
    """Check the laws for what the method does to `module`. Raises ContractError with every fault at once.

    The method answers for every kind of module, and claims nothing that says nothing; a scheme is a value that
    can be pickled; the declaration is always the same; the shards of every size that fits make the whole; fused
    parts are the separate layers; an embedding's rows are the weight's; computing is dequantizing; ranks that divide
    the inputs round them as one does; the weight that kernels are given, and what is done to their inputs, are those
    that the method itself computes with; computing experts at once is computing each.
    """
    module = module or ModuleInfo(("layer",))
    faults = [*check_answers(quantization)]
    if not faults:
        treatment = quantization.treat(module)
        faults += _check_declaration(quantization, treatment, module, geometries[0])
        for geometry in geometries:
            faults += _check_laws(quantization, treatment, geometry, sizes)
    if faults:
        raise ContractError(quantization.method.name, list(dict.fromkeys(faults)))


class _Case:
    """One geometry of one scheme, with random tensors for it."""

    def __init__(
        self, quantization: Quantization, treatment: Treatment, geometry: Geometry, sizes: Sequence[int]
    ) -> None:
        self.quantization = quantization
        self.treatment = treatment
        self.geometry = geometry
        self.sizes = sizes
        self.site = Site(quantization, "layer")
        self.tensors = make_tensors(quantization, treatment, geometry, (Source("layer"),))

    @property
    def label(self) -> str:
        return f"{self.geometry.out_features} x {self.geometry.in_features}"

    @property
    def specs(self) -> list[ParameterSpec]:
        return [spec for spec in self.quantization.declare(self.treatment, self.geometry) if spec.loaded]

    def load(self, sharding: Sharding, rank: int = 0, size: int = 1, parts: Sequence[Part] = ()) -> Layer:
        """The layer of one rank, loaded, with what is stored."""
        geometry = replace(self.geometry, parts=tuple(parts)) if parts else self.geometry
        source = Source("layer", parts=len(geometry.parts))
        site = replace(self.site, group=Group(rank, size))
        layer = Layer(geometry, (source,), site, self.treatment, sharding)
        load_tensors(layer, self.tensors, self.quantization, kernels=())
        return layer


def _check_laws(
    quantization: Quantization, treatment: Treatment, geometry: Geometry, sizes: Sequence[int]
) -> Iterator[str]:
    size = f"{geometry.out_features} x {geometry.in_features}"
    for law in (
        _check_whole,
        _check_shards,
        _check_inputs,
        _check_fused,
        _check_embedding,
        _check_weights,
        _check_experts,
    ):
        try:
            yield from law(_Case(quantization, treatment, geometry, sizes))
        except QloadError as error:
            yield f"{size}: {error}"
        except Exception as error:
            yield f"{size}: {law.__name__.removeprefix('_check_')}: {type(error).__name__}: {error}"


def _check_declaration(
    quantization: Quantization, treatment: Treatment, module: ModuleInfo, geometry: Geometry
) -> Iterator[str]:
    create = treatment.method.declaration["qload_create_weights"]
    try:
        if create(treatment.scheme, geometry) != create(treatment.scheme, geometry):
            yield "the declaration differs from call to call"
    except PluginError as error:
        yield from error.faults
    if quantization.treat(module) != treatment:
        yield "the scheme of one module differs from call to call"
    yield from _check_pickling(treatment)


def _check_pickling(treatment: Treatment) -> Iterator[str]:
    """A model is saved and copied with the schemes of its layers."""
    try:
        same = pickle.loads(pickle.dumps(treatment.scheme)) == treatment.scheme
    except Exception as error:
        yield f"the scheme cannot be pickled: {type(error).__name__}: {error}"
    else:
        if not same:
            yield "the scheme is another one once it has been pickled"


def _check_whole(case: _Case) -> Iterator[str]:
    layer = case.load(column)
    weight = layer.dequantize()
    expected = (case.geometry.out_features, case.geometry.in_features)
    if tuple(weight.shape) != expected:
        yield f"{case.label}: dequantize gives {list(weight.shape)}, not {list(expected)}"
    elif not bool(torch.isfinite(weight).all()):
        yield f"{case.label}: dequantize gives values that are not finite"
    else:
        yield from _check_apply(case, layer, weight)


def _check_apply(case: _Case, layer: Layer, weight: Tensor) -> Iterator[str]:
    layer.quantize_activations = False
    x = torch.randn(3, case.geometry.in_features, generator=torch.Generator().manual_seed(1))
    expected = F.linear(x, weight.to(x.dtype))
    if not torch.allclose(layer.compute(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
        yield f"{case.label}: computing differs from dequantizing"


def _check_shards(case: _Case) -> Iterator[str]:
    whole = case.load(column).dequantize()
    for sharding, dim in ((column, 0), (row, 1)):
        fitting = fitting_sizes(case.geometry, sharding, case.specs)
        for size in (size for size in case.sizes if size in fitting):
            shards = [case.load(sharding, rank, size).dequantize() for rank in range(size)]
            if not torch.equal(torch.cat(shards, dim), whole):
                yield f"{case.label}: the {size} shards of {sharding.__name__} are not the whole"


def _check_inputs(case: _Case) -> Iterator[str]:
    """Ranks that divide the inputs round them as one process does, with scales that they agree on."""
    sizes = [size for size in fitting_sizes(case.geometry, row, case.specs) if 1 < size <= max(case.sizes)]
    if not sizes:
        return
    x = torch.randn(3, case.geometry.in_features, generator=torch.Generator().manual_seed(3))
    x *= torch.linspace(1, 3, case.geometry.in_features)
    expected, size = case.load(row).compute(x), sizes[0]
    found = sum_shares([case.load(row, rank, size) for rank in range(size)], x)
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
        yield f"{case.label}: the inputs that {size} ranks share are not rounded as one rank rounds them"


def _check_fused(case: _Case) -> Iterator[str]:
    """A layer of two parts, stored as one tensor, is the layer of one part."""
    if any(spec.layout.is_solid(Dim.OUT) for spec in case.specs):
        return
    rows = case.geometry.out_features
    unit = max(spec.layout.unit(Dim.OUT) for spec in case.specs)
    first = rows // 2 // unit * unit
    if not 0 < first < rows:
        return
    fused = case.load(column, parts=(Part("a", first), Part("b", rows - first)))
    if not torch.equal(fused.dequantize(), case.load(column).dequantize()):
        yield f"{case.label}: two parts in one tensor are not the tensor"


def _check_embedding(case: _Case) -> Iterator[str]:
    if "qload_embedding" not in case.treatment.method.runtime or case.geometry.kind is not Kind.LINEAR:
        return
    table = VocabParallelEmbedding(
        case.geometry.out_features, case.geometry.in_features, case.site, multiple=1, treatment=case.treatment
    )
    load_tensors(table, case.tensors, case.quantization, kernels=())
    weight = table.dequantize()
    ids = torch.tensor([[0, 1, case.geometry.out_features - 1], [7, 7, 3]])
    if not torch.equal(table(ids), weight[ids].to(torch.float32)):
        yield f"{case.label}: the rows that are looked up are not the weight's"


def _check_weights(case: _Case) -> Iterator[str]:
    """Of the whole and of shares: a weight for kernels, or why there is none, in words."""
    for sharding in (column, row):
        fitting = fitting_sizes(case.geometry, sharding, case.specs)
        for size in [size for size in case.sizes if size in fitting][:2]:
            layers = [case.load(sharding, rank, size) for rank in range(size)]
            faults = [fault for layer in layers for piece in layer.pieces() for fault in check_weight(layer, piece)]
            yield from (f"{case.label}: {fault}" for fault in dict.fromkeys(faults))


def _check_experts(case: _Case) -> Iterator[str]:
    """Also where ranks divide the experts, and where some are not chosen."""
    if "qload_apply_experts" not in case.treatment.method.runtime:
        return
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, case.geometry.in_features, generator=generator)
    ids, weights = torch.tensor([[3, 0], [1, 3], [3, 1]]), torch.rand(3, 2, generator=generator)
    expected = apply_one_by_one(_load_experts(case), x, ids, weights)
    for size in (1, 2):
        found = torch.stack([_load_experts(case, rank, size).compute(x, ids, weights) for rank in range(size)]).sum(0)
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
            yield f"{case.label}: computing the experts of {size} ranks at once differs from one by one"


def _load_experts(case: _Case, rank: int = 0, size: int = 1) -> Experts:
    """Gated experts of one rank, which holds some of them, from random tensors."""
    site = replace(case.site, group=Group(rank, size))
    outputs, inputs = case.geometry.out_features, case.geometry.in_features

    def stack(name: str, inputs: int, parts: Sequence[Part]) -> ExpertLinear:
        sources = [Source(f"{name}.{e}.{n}", n, expert=e) for e in range(EXPERTS) for n in range(len(parts))]
        place, sharding = site.at(name), expert_parallel
        return ExpertLinear(EXPERTS, inputs, parts, place, sources=sources, sharding=sharding, treatment=case.treatment)

    up = stack("up", inputs, [Part("gate", outputs), Part("up", outputs)])
    experts = Experts(up, stack("down", outputs, [Part("", inputs)]), _gate)
    layers = (experts.gate_up_proj, experts.down_proj)
    tensors = [make_tensors(case.quantization, case.treatment, each.geometry, each.sources) for each in layers]
    load_tensors(experts, tensors[0] | tensors[1], case.quantization, kernels=())
    for layer in layers:
        layer.quantize_activations = False
    return experts


def _gate(projected: Tensor) -> Tensor:
    gate, up = projected.chunk(2, -1)
    return F.silu(gate) * up
