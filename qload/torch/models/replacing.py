"""Finds the layers of a transformers model that hold weights, and makes qload's in their place."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qload.errors import CapabilityError, CheckpointError, ModelError, ShardError
from qload.findings import Finding, refusals, report
from qload.geometry import Geometry, Kind, Part, replicated, single
from qload.hookspecs import ModuleInfo
from qload.quantization import Quantization, Treatment
from qload.roles import Heads, make_part
from qload.torch.dtypes import dtype_code
from qload.torch.layers import Layer, ParallelLMHead, VocabParallelEmbedding
from qload.torch.layers.linear import Linear
from qload.torch.models.caching import SCALES, count_heads, has_cache
from qload.torch.models.context import Context, class_names
from qload.torch.models.embedding import ComputedEmbedding, computes_by_row
from qload.torch.models.naming import Names
from qload.torch.models.stacks import describe_stack, make_stack
from qload.torch.parallel import Group


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


def make_replacements(
    model: PreTrainedModel,
    names: Names,
    quantization: Quantization,
    dtype: torch.dtype,
    *,
    skipped: Container[str] = (),
    shared: Container[str] = (),
    group: Group,
    heads: Heads,
    by_experts: bool = False,
) -> Replacements:
    """Make a layer for every linear layer, embedding and stack of experts; `put` sets them in.

    `skipped` modules are left as they are, and a bias that is one of the `shared` tensors to whoever ties it.
    Of a stack of experts the stacked weights are taken away, for the rest of it is kept as the gate. What a
    method refuses is a finding. Layers are divided over the ranks of `group`, attentions by whole `heads`, and mixtures
    by whole experts if `by_experts`. Raises ShardError where some cannot be, with the numbers of ranks that fit all.
    """
    context = Context(model, names, quantization, dtype, shared, group, heads, by_experts)
    made = Replacements()
    outputs = _head_names(model)
    reasons: dict[str, str] = {}
    misfits: list[ShardError] = []
    for name, module in model.named_modules():
        if name in skipped:
            continue
        try:
            for place, replacement in _replace(name, module, name in outputs, context):
                made.modules[place] = replacement
                made.layers |= _layers(place, replacement)
        except (ValueError, CapabilityError) as error:
            reasons[name] = str(error)
        except ShardError as error:
            misfits.append(error)
        except ModelError as error:
            made.refuse(name, [_refused(name, error)])
        except CheckpointError as error:
            made.refuse(name, [fault for fault in error.findings if isinstance(fault, Finding)])
    if misfits:
        raise _join_misfits(misfits)
    made.refused += reasons
    made.findings += (*refusals(reasons), *(_unsupported(module) for module in names.unsupported))
    return made


def _join_misfits(misfits: Sequence[ShardError]) -> ShardError:
    first, *others = misfits
    sizes = set(first.sizes).intersection(*(error.sizes for error in others))
    what = f"{first.what}, and as little {len(others)} other modules" if others else first.what
    facts = {"where": first.where, "expected": first.expected, "found": first.found}
    return ShardError(what, unit=first.unit, sizes=sorted(sizes), **facts)


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


def _replace(name: str, module: nn.Module, is_head: bool, context: Context) -> Iterator[tuple[str, nn.Module]]:
    stack = describe_stack(module)
    if stack is not None:
        experts = make_stack(name, stack, context)
        if experts is not None:
            yield name, experts
    elif isinstance(module, nn.Embedding):
        yield from _make_embedding(name, module, context)
    elif isinstance(module, nn.Linear | Conv1D):
        yield from _make_linear(name, module, is_head, context)
    elif type(module).__name__.endswith("Attention"):
        yield from _make_cache_scales(name, module, context)


def _make_linear(
    name: str, module: nn.Linear | Conv1D, is_head: bool, context: Context
) -> Iterator[tuple[str, nn.Module]]:
    if context.is_converted(name):
        return
    source = context.source(name)
    kind = Kind.LM_HEAD if is_head else Kind.LINEAR
    treatment = _treat(name, source.prefix, kind, module, context)
    if isinstance(module, Conv1D) and treatment.scheme is None and context.group.size > 1:
        # Only as a layer of ours can it be divided.
        source = replace(source, turned=True)
    elif not _can_replace(name, module, (nn.Linear, Conv1D), treatment, context):
        return
    site = context.site(name, source.prefix)
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
    else:
        outputs, inputs = module.weight.shape
    bias = module.bias is not None and f"{name}.bias" not in context.shared
    part = Part("", outputs) if is_head else make_part(source.prefix, outputs, context.heads)
    geometry = Geometry(inputs, (part,), None, kind, dtype_code(site.dtype), bias)
    sharding = context.choose_sharding(source.prefix, geometry, treatment)
    if is_head:
        site = site if sharding is not replicated else site.alone
        yield (
            name,
            ParallelLMHead(
                outputs, inputs, site, bias=bias, gather_output=True, multiple=1, source=source, treatment=treatment
            ),
        )
    else:
        yield name, Linear(inputs, (part,), site, bias=bias, sources=(source,), treatment=treatment, sharding=sharding)


def _make_embedding(name: str, module: nn.Embedding, context: Context) -> Iterator[tuple[str, nn.Module]]:
    if context.is_converted(name):
        return
    source = context.source(name)
    treatment = _treat(name, source.prefix, Kind.EMBEDDING, module, context)
    site = context.site(name, source.prefix)
    geometry = single(module.num_embeddings, module.embedding_dim, kind=Kind.EMBEDDING, dtype=dtype_code(site.dtype))
    sharding = context.choose_sharding(source.prefix, geometry, treatment)
    is_wanted = treatment.scheme is not None or (context.group.size > 1 and sharding is not replicated)
    is_computed = type(module).forward is not nn.Embedding.forward and is_wanted
    is_computed = is_computed and computes_by_row(module)
    if not is_computed and not _can_replace(name, module, (nn.Embedding,), treatment, context):
        return
    layer = VocabParallelEmbedding(
        module.num_embeddings,
        module.embedding_dim,
        site if sharding is not replicated else site.alone,
        multiple=1,
        source=source,
        treatment=treatment,
    )
    yield name, ComputedEmbedding(layer, module) if is_computed else layer


def _make_cache_scales(name: str, module: nn.Module, context: Context) -> Iterator[tuple[str, nn.Module]]:
    """The scales of an attention's keys and values, where the checkpoint has them."""
    source = context.source_above(name, [child for child, _ in module.named_children()])
    if not has_cache(module) and name not in context.names.sources:
        return
    treatment = _treat(name, source.prefix, Kind.KV_CACHE, module, context)
    if treatment.scheme is not None:
        geometry = single(count_heads(module), 1, kind=Kind.KV_CACHE)
        yield f"{name}.{SCALES}", Layer(geometry, (source,), context.site(name, source.prefix).alone, treatment)


def _treat(name: str, prefix: str, kind: Kind, module: nn.Module, context: Context) -> Treatment:
    names = (prefix,) if prefix == name else (prefix, name)
    return context.quantization.treat(ModuleInfo(names, kind, class_names(module)))


def _can_replace(
    name: str, module: nn.Module, plain: tuple[type[nn.Module], ...], treatment: Treatment, context: Context
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


def _refused(name: str, error: ModelError) -> Finding:
    where, remedy = error.where or name, error.remedy
    return report("QL211", error.what, where=where, expected=error.expected, found=error.found, remedy=remedy)


def _unsupported(module: str) -> Finding:
    return report("QL211", "its tensors would have to be converted in a way that only dense ones can be", where=module)


def _head_names(model: PreTrainedModel) -> frozenset[str]:
    head = model.get_output_embeddings()
    return frozenset(name for name, module in model.named_modules() if module is head)
