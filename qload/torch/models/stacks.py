"""Stacks of experts, as transformers' modules hold them, and qload's in their place.

The classes say how they lie by attributes of one convention (`use_experts_implementation`): transposed or not, gate
and up projection one after the other or row by row, with biases or without. One without those attributes is tried.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qload.declare import ParameterKind
from qload.errors import ModelError
from qload.geometry import Geometry, Kind, Part, expert_parallel, kept_whole
from qload.layout import Dim
from qload.plan import Source
from qload.quantization import Quantization, Treatment
from qload.torch.dtypes import dtype_code
from qload.torch.layers import ExpertLinear, Experts, SortedExperts
from qload.torch.models.context import Context, class_names

PARTS = ("gate_proj", "up_proj")


@dataclass(frozen=True, slots=True)
class Stack:
    """A module that holds experts in two parameters, `up` and `down_proj`.

    `is_sorted` means that tokens come expert by expert, in equal shares, and without numbers of experts. A stack that
    is not `known` computes something else, too.
    """

    module: nn.Module
    up: str
    is_transposed: bool = False
    is_interleaved: bool = False
    bias: bool = False
    is_sorted: bool = False
    known: bool = True

    @property
    def has_gate(self) -> bool:
        return self.up != "up_proj"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The number of experts, of their inputs, and of what lies between their two layers."""
        count, outputs, inputs = self.module.get_parameter("down_proj").shape
        return (count, inputs, outputs) if self.is_transposed else (count, outputs, inputs)

    def gate(self, *, interleave: bool = False) -> "ModuleGate":
        """The module's own, for parts that lie as in the module, or first to be brought into turns."""
        return ModuleGate(self.module, self.has_gate, interleave)


@dataclass(frozen=True, slots=True)
class ModuleGate:
    """The gate of a stack of experts: what is left of a module of transformers, whose weights are taken away.

    `interleave` brings two parts that lie one after the other into turns, for a gate that takes them so.
    """

    module: nn.Module
    has_gate: bool
    interleave: bool = False

    def __call__(self, projected: Tensor) -> Tensor:
        if self.interleave:
            projected = torch.stack(projected.chunk(2, -1), -1).flatten(-2)
        own = getattr(self.module, "_apply_gate", None)
        if self.has_gate and own is not None:
            gated: Tensor = own(projected)
            return gated
        activate = self.module.get_submodule("act_fn")
        if not self.has_gate:
            return activate(projected)  # type: ignore[no-any-return]
        first, second = projected.chunk(2, -1)
        return activate(first) * second  # type: ignore[no-any-return]


def describe_stack(module: nn.Module) -> Stack | None:
    """How a module holds its experts; None where it holds none in two parameters of three dimensions."""
    up = next((name for name in ("gate_up_proj", "up_proj") if _is_matrices(module, name)), None)
    if up is None or not _is_matrices(module, "down_proj"):
        return None
    if not hasattr(module, "is_transposed"):
        return _try_stack(module, up)
    known = {up, "down_proj", f"{up}_bias", "down_proj_bias"} >= {name for name, _ in module.named_parameters()}
    counts = {len(module.get_parameter(name)) for name in (up, "down_proj")}
    return Stack(
        module,
        up,
        bool(module.is_transposed),
        bool(module.has_gate and not module.is_concatenated),
        bool(module.has_bias),
        known=known and not getattr(module, "has_post_expert_norm", False) and len(counts) == 1,
    )


def _is_matrices(module: nn.Module, name: str) -> bool:
    found = module._parameters.get(name)
    return found is not None and found.dim() == 3


def make_stack(name: str, stack: Stack, context: Context) -> Experts | None:
    """Experts that the checkpoint stores one by one, or quantized; other stacks stay as they are.

    Raises ModelError where they are quantized and the stack is of a kind that is not known.
    """
    up, down = f"{name}.{stack.up}", f"{name}.down_proj"
    if not {up, down} <= context.names.sources.keys():
        return None
    sources = [source for place in (up, down) for source in context.names.sources[place]]
    # A method's config speaks of experts as of linear layers, which they are where they are stored quantized.
    is_plain = context.names.plain >= {source.prefix for source in sources}
    is_apart = all(source.expert is not None for source in sources)
    if is_plain and not (stack.known and (is_apart or context.group.size > 1)):
        return None
    if not is_plain:
        _check(name, stack, sources, context)
    classes = ("Linear",) if context.quantization.is_to_be_made or not is_plain else class_names(stack.module)
    count, hidden, inner = stack.sizes
    parts = [Part(part, inner) for part in (context.names.parts.get(up, PARTS) if stack.has_gate else ("",))]
    layer = partial(_make_layer, context=context, classes=classes, experts=count, bias=stack.bias)
    # Stored apart, parts stay so.
    interleaved = stack.is_interleaved and all(source.parts > 1 for source in context.names.sources[up])
    up_proj = layer(up, hidden, parts, interleaved=interleaved)
    down_proj = layer(down, inner, [Part("", hidden)])
    if stack.is_transposed and not is_apart if is_plain else _is_turned((up_proj, down_proj), context):
        for each in (up_proj, down_proj):
            each.sources = tuple(replace(source, turned=True) for source in each.sources)
    # What is left of the original module is its gate.
    for weight in list(stack.module._parameters):
        delattr(stack.module, weight)
    gate = stack.gate(interleave=stack.is_interleaved and not interleaved)
    return (SortedExperts if stack.is_sorted else Experts)(up_proj, down_proj, gate)


def _make_layer(
    place: str,
    inputs: int,
    parts: Sequence[Part],
    *,
    context: Context,
    classes: tuple[str, ...],
    experts: int,
    bias: bool,
    interleaved: bool = False,
) -> ExpertLinear:
    sources, site = context.names.sources[place], context.site(place, place)
    treatment = site.treat(sources, Kind.LINEAR, classes)
    geometry = Geometry(inputs, tuple(parts), experts, Kind.EXPERTS, dtype_code(site.dtype), bias, interleaved)
    sharding = context.choose_sharding(place, geometry, treatment)
    if any(source.parts > 1 for source in sources) and _are_packed_together(context.quantization, treatment, geometry):
        parts, interleaved, sharding = [Part("", geometry.out_features)], False, kept_whole
        sources = tuple(replace(source, parts=1) for source in sources)
    if context.by_experts:
        sharding = expert_parallel
    return ExpertLinear(
        experts,
        inputs,
        parts,
        site,
        sources=sources,
        sharding=sharding,
        treatment=treatment,
        bias=bias,
        interleaved=interleaved,
    )


def _are_packed_together(quantization: Quantization, treatment: Treatment, geometry: Geometry) -> bool:
    """Whether a unit of rows is of several parts, so that only all of them together can be read and computed."""
    units = [spec.layout.unit(Dim.OUT) for spec in quantization.declare(treatment, geometry)]
    sizes = [part.size for part in geometry.parts[:-1]]
    return any(unit > 1 and (geometry.interleaved or size % unit) for unit in units for size in sizes)


def _is_turned(layers: Sequence[ExpertLinear], context: Context) -> bool:
    """Whether whole stacks are stored as [in, out], as some models have their dense ones.

    Of one layer that is square the shapes do not tell; of both together they do.
    """
    found = {turned for layer in layers if (turned := _lies_turned(layer, context)) is not None}
    return found == {True}


def _lies_turned(layer: ExpertLinear, context: Context) -> bool | None:
    source = layer.sources[0]
    shapes, extents = context.names.shapes.get(source.prefix, {}), source.geometry(layer.geometry).extents
    for spec in layer.declared.values():
        stored = shapes.get(spec.stored_as)
        if stored is not None and spec.kind in (ParameterKind.PACKED, ParameterKind.WEIGHT) and spec.layout.is_matrix:
            count, rows, columns = spec.layout.shape(extents)
            straight, turned = (spec.matches(stored, (count, *shape)) for shape in ((rows, columns), (columns, rows)))
            return turned if straight != turned else None
    return None


def _check(name: str, stack: Stack, sources: Sequence[Source], context: Context) -> None:
    if not stack.known:
        raise ModelError(f"{type(stack.module).__name__} is a stack of experts of another kind", where=name)
    dense = [source.prefix for source in sources if source.prefix in context.names.plain and source.expert is None]
    if dense and stack.is_transposed:
        raise ModelError("one half of a stack of experts is quantized, and the other is not", where=dense[0])


def _try_stack(module: nn.Module, up: str) -> Stack:
    """How a module without the attributes holds its experts, tried on two tiny ones."""
    count, rows, columns = module.get_parameter(up).shape
    experts, *down = module.get_parameter("down_proj").shape
    is_transposed = [rows, 2 * down[0]] == [down[1], columns]
    arguments = len(inspect.signature(type(module).forward).parameters) - 1
    own = [name for name, _ in module.named_parameters()]
    known = up == "gate_up_proj" and len(own) == 2 and count == experts and arguments in (1, 3)
    stack = Stack(module, up, is_transposed, is_sorted=arguments == 1, known=known)
    if known and not _computes(stack):
        return Stack(module, up, is_transposed, known=False)
    return stack


def _computes(stack: Stack) -> bool:
    """Whether the module's own forward gives what plain experts with its gate do."""
    hidden = stack.sizes[1]
    up, down = _spread(2, 4, hidden), _spread(2, hidden, 2)
    x, ids = _spread(4, hidden), torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]])
    weights = torch.tensor([[1.0, 0.5], [2.0, 1.5], [1.0, 3.0], [0.25, 1.0]], dtype=x.dtype)
    turned = [weight.mT.contiguous() if stack.is_transposed else weight for weight in (up, down)]
    if stack.is_sorted:
        # Two tokens for each.
        ids, weights = torch.tensor([[0], [0], [1], [1]]), torch.ones_like(x[:, :1])
    try:
        arguments = (x,) if stack.is_sorted else (x, ids, weights)
        found = functional_call(stack.module, {stack.up: turned[0], "down_proj": turned[1]}, arguments)
        made = torch.stack([stack.gate()(x @ up[expert].T) @ down[expert].T for expert in range(2)], 1)
    except Exception:  # whatever the code of an architecture makes of sizes that are not its own
        return False
    expected = (made.gather(1, ids[..., None].expand(-1, -1, hidden)) * weights[..., None]).sum(1)
    return isinstance(found, Tensor) and found.shape == x.shape and torch.allclose(found, expected)


def _spread(*shape: int) -> Tensor:
    count = int(torch.Size(shape).numel())
    # In double precision, in which sums over many features agree in whatever order.
    return torch.linspace(-1, 1.3, count, device="cpu", dtype=torch.float64).sin().reshape(shape)
