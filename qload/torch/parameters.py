"""Parameters that know what they are: which tensor of which layer, and which rank's share of it.

Each can be loaded by hand, from a whole tensor as a checkpoint would store it: what of it lands where is worked out
as the plan of a load works it out.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn

from qload.declare import ParameterKind, ParameterSpec
from qload.errors import CheckpointError, ParameterError
from qload.geometry import Geometry, Shard
from qload.layout import Axis
from qload.plan import Source
from qload.torch.copying import copy_region
from qload.torch.dtypes import dtype_code, torch_dtype
from qload.torch.feeding import Whole, find_source, read_whole
from qload.torch.identity import Identity, PartOfExpert, list_parts
from qload.torch.values import check_values


class TypedParameter(nn.Parameter):
    """A tensor of a layer that knows what it is, and that whole tensors can be loaded into.

    What is computed with it is plain tensors. `loaded` are the parts of the experts that it has been loaded with.
    """

    identity: Identity
    loaded: frozenset[PartOfExpert]

    def __new__(
        cls,
        data: Tensor,
        identity: Identity,
        loaded: frozenset[PartOfExpert] = frozenset(),
        requires_grad: bool = False,
    ) -> Self:
        parameter = super().__new__(cls, data.detach(), requires_grad)
        parameter.identity = identity
        parameter.loaded = loaded
        return parameter

    @property
    def spec(self) -> ParameterSpec:
        """The declaration of the whole tensor."""
        return self.identity.spec

    @property
    def kind(self) -> ParameterKind:
        """What the tensor is for."""
        return self.identity.spec.kind

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What each axis of the tensor follows."""
        layout = self.identity.spec.layout
        return layout.permute(*self.identity.order).axes if self.identity.order else layout.axes

    @property
    def geometry(self) -> Geometry:
        """The whole layer's."""
        return self.identity.geometry

    @property
    def shard(self) -> Shard:
        """Whose share of the layer this is, and which."""
        return self.identity.shard

    @property
    def scheme(self) -> Any:
        """What the layer's method does to it; None where it is not quantized."""
        return self.identity.treatment.scheme

    @property
    def missing(self) -> frozenset[PartOfExpert]:
        """The parts of this rank's experts that have not been loaded."""
        return self.identity.owned - self.loaded

    def load(
        self,
        tensor: Tensor,
        part: int | str | None = None,
        expert: int | None = None,
        *,
        cast: bool = False,
        synchronize: Callable[[], None] | None = None,
    ) -> int:
        """Copy this rank's share of a whole tensor, as a checkpoint would store it; returns the entries written.

        It is one of the layer's parts, by name or number, or without `part` all of them, fused; one of its experts,
        or without `expert` all. `cast` allows values to change with the dtype. `synchronize` is called after each
        copy. Raises, before anything is written: ParameterError for a part, expert, shape or dtype that is not the
        layer's, LayoutError where the share splits a unit, CheckpointError for values that cannot be right.
        """
        source = find_source(self.identity, part, expert)
        return self.load_source(tensor, source, cast=cast, synchronize=synchronize)

    def load_source(
        self, tensor: Tensor, source: Source, *, cast: bool = False, synchronize: Callable[[], None] | None = None
    ) -> int:
        """As `load`, for what a source of the layer stores, whatever its place is called."""
        if self.is_meta:
            raise ParameterError(
                "a parameter without memory cannot be loaded",
                where=self.identity.where,
                found="the meta device",
                remedy="make the layer's parameters with layer.allocate(device)",
            )
        # What is stored decides in which of its dtypes a parameter is kept, once for all parts.
        own, casts = dtype_code(self.dtype), self.spec.cast
        whole = read_whole(self.identity, tensor, source, own, free=casts or not self.loaded, cast=cast)
        self._check(whole)
        self._become(own if casts else dtype_code(whole.tensor.dtype), whole.length)
        self._copy(whole, synchronize)
        self.loaded |= list_parts(source, None if self.geometry.experts is None else range(self.geometry.experts))
        return whole.reading.written

    def _check(self, whole: Whole) -> None:
        """Raises CheckpointError for values in this rank's share that cannot be right."""
        spec, where = self.spec, self.identity.where
        for move in whole.reading.moves:
            region = whole.tensor[tuple(interval.slice for interval in move.source)]
            findings = list(check_values(spec.kind, spec.bounds, spec.facts, region, where, ""))
            if findings:
                raise CheckpointError(where, findings)

    def _copy(self, whole: Whole, synchronize: Callable[[], None] | None) -> None:
        held = self.identity.arrange(self.data)
        for move in whole.reading.moves:
            destination = held[tuple(interval.slice for interval in move.destination)]
            copy_region(whole.tensor, move.source, destination, turned=whole.reading.turned)
            if synchronize is not None:
                synchronize()

    def permute_axes(self, *dims: int) -> "TypedParameter":
        """The parameter with its axes in another order, as `torch.permute` has it, contiguous; what is packed stays so.

        It is loaded from the same whole tensors. Raises LayoutError unless each axis is named once.
        """
        order = self.identity.order or tuple(range(self.dim()))
        self.spec.layout.permute(*dims)
        data = self.data.permute(dims).contiguous()
        identity = replace(self.identity, order=tuple(order[dim] for dim in dims))
        return TypedParameter(data, identity, self.loaded, self.requires_grad)

    def _become(self, dtype: str, length: int | None) -> None:
        """Take the dtype of what is stored, and the length that only it knows, before it is written."""
        identity = self.identity
        held = identity.arrange(self.data)
        grows = [axis for axis, each in enumerate(self.spec.layout.axes) if each.measured]
        longest = max([length or 0, *(held.shape[axis] for axis in grows)]) if grows else None
        if self.dtype == torch_dtype(dtype) and all(held.shape[axis] == longest for axis in grows):
            return
        blank = identity.make_blank(dtype, self.device, longest)
        if self.loaded:
            blank[tuple(map(slice, held.shape))] = held
        self.data = blank.permute(identity.order).contiguous() if identity.order else blank

    def __deepcopy__(self, memo: dict[int, Any]) -> "TypedParameter":
        if id(self) not in memo:
            memo[id(self)] = _restore(self.data.clone(memory_format=torch.preserve_format), *self._describe())
        copied: TypedParameter = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        return _restore, (self.data, *self._describe())

    def _describe(self) -> tuple[bool, dict[str, Any]]:
        return self.requires_grad, dict(vars(self))


def _restore(data: Tensor, requires_grad: bool, known: dict[str, Any]) -> TypedParameter:
    parameter = TypedParameter(data, known["identity"], known["loaded"], requires_grad)
    vars(parameter).update(known)
    return parameter


def is_typed(parameter: nn.Parameter | None) -> TypeGuard[TypedParameter]:
    """Whether a parameter knows what it is."""
    return parameter is not None and "identity" in vars(parameter)


def retype(now: nn.Parameter | None, before: nn.Parameter, known: dict[str, Any]) -> nn.Parameter | None:
    """What stands in a parameter's place, as typed as that was, of which `known` were the attributes."""
    if now is None or is_typed(now):
        return now
    typed = _restore(now.data, now.requires_grad, known)
    if now is not before:
        return typed
    # torch has swapped what the object is, so that whoever holds it has the new tensor.
    torch.utils.swap_tensors(now, typed)
    return now
