"""Finds the layers of a transformers model that hold weights, and makes qload's in their place."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qload.errors import CapabilityError, CheckpointError, ModelError
from qload.findings import Finding, refusals, report
from qload.geometry import Kind, Part, Sharding, column, row, single
from qload.hookspecs import ModuleInfo
from qload.plan import Source
from qload.quantization import Quantization, Treatment
from qload.torch.layers import (
    ExpertLinear,
    Experts,
    Layer,
    ParallelLMHead,
    ReplicatedLinear,
    VocabParallelEmbedding,
)
from qload.torch.models.building import kept_dtype
from qload.torch.models.caching import SCALES, count_heads, has_cache
from qload.torch.models.naming import Names
from qload.torch.sites import Site


@dataclass(slots=True)
class Replacements:
    """The modules to put into a model by name, the layers in them, and what was found wrong.

    `refused` are the modules for which none could be made; a finding says why.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def refuse(self, name: str, findings: Iterable[Finding]) -> None:
        self.refused.append(name)
        self.findings += findings


@dataclass(frozen=True, slots=True)
class _Context:
    model: PreTrainedModel
    names: Names
    quantization: Quantization
    dtype: torch.dtype
    shared: Container[str]

    def source(self, name: str) -> Source:
        """The checkpoint's module for one of the model's; one of the same name where it has none."""
        found = self.names.sources.get(name, (Source(name),))
        if len(found) > 1:
            prefixes = ", ".join(source.prefix for source in found)
            raise ModelError("several modules of the checkpoint fill one of the model", where=name, found=prefixes)
        return found[0]

    def is_converted(self, name: str) -> bool:
        """Whether a module's weight is made of dense tensors that no layer of ours could read as they lie."""
        return name not in self.names.sources and f"{name}.weight" in self.names.converted

    def site(self, name: str, checkpoint_name: str) -> Site:
        dtype = kept_dtype(self.model, name, self.dtype)
        return Site(self.quantization, checkpoint_name, dtype=dtype)


def make_replacements(
    model: PreTrainedModel,
    names: Names,
    quantization: Quantization,
    dtype: torch.dtype,
    *,
    skipped: Container[str] = (),
    shared: Container[str] = (),
) -> Replacements:
    """Make a layer for every linear layer, embedding and stack of experts; `put` sets them in.

    `skipped` modules are left as they are, and a bias that is one of the `shared` tensors to whoever ties it.
    Of a stack of experts the stacked weights are taken away, for the rest of it is kept as the gate. What a
    method refuses is a finding.
    """
    context = _Context(model, names, quantization, dtype, shared)
    made = Replacements()
    heads = _head_names(model)
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        if name in skipped:
            continue
        try:
            for place, replacement in _replace(name, module, name in heads, context):
                made.modules[place] = replacement
                made.layers |= _layers(place, replacement)
        except (ValueError, CapabilityError) as error:
            reasons[name] = str(error)
        except ModelError as error:
            made.refuse(name, [_refused(name, error)])
        except CheckpointError as error:
            made.refuse(name, [fault for fault in error.findings if isinstance(fault, Finding)])
    made.refused += reasons
    made.findings += (*refusals(reasons), *(_unsupported(module) for module in names.unsupported))
    return made


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in another one's place."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _layers(place: str, module: nn.Module) -> Mapping[str, Layer]:
    prefix = f"{place}." if place else ""
    return {
        f"{prefix}{name}" if name else place: layer
        for name, layer in module.named_modules()
        if isinstance(layer, Layer)
    }


def _replace(name: str, module: nn.Module, is_head: bool, context: _Context) -> Iterator[tuple[str, nn.Module]]:
    if _is_stack(module):
        experts = _make_experts(name, module, context)
        if experts is not None:
            yield name, experts
    elif isinstance(module, nn.Embedding):
        yield from _make_embedding(name, module, context)
    elif isinstance(module, nn.Linear | Conv1D):
        yield from _make_linear(name, module, is_head, context)
    elif type(module).__name__.endswith("Attention"):
        yield from _make_cache_scales(name, module, context)


def _make_linear(
    name: str, module: nn.Linear | Conv1D, is_head: bool, context: _Context
) -> Iterator[tuple[str, nn.Module]]:
    if context.is_converted(name):
        return
    source = context.source(name)
    kind = Kind.LM_HEAD if is_head else Kind.LINEAR
    treatment = _treat(name, source.prefix, kind, module, context)
    if not _can_replace(name, module, (nn.Linear, Conv1D), treatment, context):
        return
    site = context.site(name, source.prefix)
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
    else:
        outputs, inputs = module.weight.shape
    bias = module.bias is not None and f"{name}.bias" not in context.shared
    layer: Layer
    if is_head:
        layer = ParallelLMHead(outputs, inputs, site, bias=bias, multiple=1, source=source, treatment=treatment)
    else:
        layer = ReplicatedLinear(inputs, outputs, site, bias=bias, source=source, treatment=treatment)
    yield name, layer


def _make_embedding(name: str, module: nn.Embedding, context: _Context) -> Iterator[tuple[str, nn.Module]]:
    if context.is_converted(name):
        return
    source = context.source(name)
    treatment = _treat(name, source.prefix, Kind.EMBEDDING, module, context)
    if not _can_replace(name, module, (nn.Embedding,), treatment, context):
        return
    layer = VocabParallelEmbedding(
        module.num_embeddings,
        module.embedding_dim,
        context.site(name, source.prefix),
        multiple=1,
        source=source,
        treatment=treatment,
    )
    yield name, layer


def _make_cache_scales(name: str, module: nn.Module, context: _Context) -> Iterator[tuple[str, nn.Module]]:
    """The scales of an attention's keys and values, where the checkpoint has them."""
    source = context.source(name)
    if not has_cache(module) and name not in context.names.sources:
        return
    treatment = _treat(name, source.prefix, Kind.KV_CACHE, module, context)
    if treatment.scheme is not None:
        geometry = single(count_heads(module), 1, kind=Kind.KV_CACHE)
        yield f"{name}.{SCALES}", Layer(geometry, (source,), context.site(name, source.prefix), treatment)


def _treat(name: str, prefix: str, kind: Kind, module: nn.Module, context: _Context) -> Treatment:
    names = (prefix,) if prefix == name else (prefix, name)
    return context.quantization.treat(ModuleInfo(names, kind, _class_names(module)))


def _class_names(module: nn.Module) -> tuple[str, ...]:
    names = tuple(base.__name__ for base in type(module).__mro__ if issubclass(base, nn.Module))
    return ("Linear", *names) if isinstance(module, Conv1D) else names


def _can_replace(
    name: str, module: nn.Module, plain: tuple[type[nn.Module], ...], treatment: Treatment, context: _Context
) -> bool:
    """A module that computes more than its class's base does is left alone, unless it is quantized."""
    computes_more = not any(type(module).forward is base.forward for base in plain) and not _is_linear(module)
    if treatment.scheme is None or context.quantization.is_to_be_made:
        # A plain Conv1D is stored transposed.
        return not computes_more and not isinstance(module, Conv1D)
    if computes_more:
        raise ModelError(
            f"a {type(module).__name__} is quantized, and computes more than a plain layer",
            where=name,
            expected=" or ".join(base.__name__ for base in plain),
        )
    return True


def _is_linear(module: nn.Module) -> bool:
    """Whether a linear layer's own forward computes what the plain one does: tried on a tiny weight."""
    if not isinstance(module, nn.Linear):
        return False
    x = torch.linspace(-3, 5, 16, device="cpu").reshape(1, 4, 4)
    tensors = {"weight": torch.linspace(-2, 7, 8, device="cpu").reshape(2, 4)}
    if module.bias is not None:
        tensors["bias"] = torch.linspace(3, 4, 2, device="cpu")
    try:
        found = functional_call(module, tensors, x)
    except Exception:  # whatever the code of an architecture makes of sizes that are not its own
        return False
    expected = nn.functional.linear(x, **tensors)
    return isinstance(found, Tensor) and found.shape == expected.shape and torch.allclose(found, expected)


def _is_stack(module: nn.Module) -> bool:
    """Whether a module holds experts as three-dimensional parameters, as transformers stacks them."""
    return hasattr(module, "is_transposed") and isinstance(getattr(module, "down_proj", None), nn.Parameter)


def _make_experts(name: str, module: nn.Module, context: _Context) -> Experts | None:
    """Experts that the checkpoint stores one by one; other stacks stay as they are, unless quantized."""
    up, down = f"{name}.{'gate_up_proj' if module.has_gate else 'up_proj'}", f"{name}.down_proj"
    if not {up, down} <= context.names.parts.keys():
        return None
    # A method's config speaks of experts as of linear layers, which they are where they are stored quantized.
    stored = {source.prefix for stack in (up, down) for source in context.names.sources[stack]}
    is_plain = context.names.plain >= stored
    if not _is_plain_stack(module):
        if is_plain:
            return None
        raise ModelError(f"{type(module).__name__} is a stack of experts of another kind", where=name)
    classes = ("Linear",) if context.quantization.is_to_be_made or not is_plain else _class_names(module)
    count, hidden, inner = module.get_parameter("down_proj").shape

    def stack(place: str, inputs: int, parts: Sequence[Part], sharding: Sharding) -> ExpertLinear:
        sources, site = context.names.sources[place], context.site(place, place)
        treatment = site.treat(sources, Kind.LINEAR, classes)
        return ExpertLinear(count, inputs, parts, site, sources=sources, sharding=sharding, treatment=treatment)

    up_proj = stack(up, hidden, [Part(name, inner) for name in context.names.parts[up]], column)
    down_proj = stack(down, inner, [Part("", hidden)], row)
    # What is left of the original module is its gate.
    for weight in (up, down):
        delattr(module, weight.removeprefix(f"{name}."))
    return Experts(up_proj, down_proj, ModuleGate(module))


@dataclass(frozen=True, slots=True)
class ModuleGate:
    """The gate of a stack of experts: what is left of a module of transformers, whose weights are taken away."""

    module: nn.Module

    def __call__(self, projected: Tensor) -> Tensor:
        gate = self.module._apply_gate if self.module.has_gate else self.module.act_fn
        gated: Tensor = gate(projected)  # type: ignore[operator]
        return gated


def _is_plain_stack(module: nn.Module) -> bool:
    more = module.is_transposed or module.has_bias or getattr(module, "has_post_expert_norm", False)
    return bool(module.is_concatenated or not module.has_gate) and not more


def _refused(name: str, error: ModelError) -> Finding:
    facts = {"expected": error.expected, "found": error.found, "remedy": error.remedy}
    return report("QL211", error.what, where=error.where or name, **facts)


def _unsupported(module: str) -> Finding:
    return report("QL211", "its tensors would have to be converted in a way that only dense ones can be", where=module)


def _head_names(model: PreTrainedModel) -> frozenset[str]:
    head = model.get_output_embeddings()
    return frozenset(name for name, module in model.named_modules() if module is head)
