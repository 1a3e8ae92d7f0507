"""What a layer holds: the declared tensors of one rank's share."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qload.declare import ParameterSpec, stack_experts
from qload.errors import ModelError
from qload.geometry import Geometry, Shard, Sharding, replicated
from qload.quantization import Treatment
from qload.sharding import Share, find_share
from qload.torch.dtypes import torch_dtype
from qload.torch.identity import Identity
from qload.torch.parallel import Group
from qload.torch.parameters import TypedParameter, is_typed, retype

Localize = Callable[[Tensor], Tensor]


class Holder(nn.Module):
    """The tensors that a layer of that name and geometry has on one rank, by its treatment.

    `sharding` is how it is divided over the ranks of its `group`; `shards` are those of all ranks, `shard` this one's,
    `local` the geometry of that, and `divided` the dimensions in which shards differ. `declared` are the tensors that
    its method declares, `derived` those that the method's post-load hook made of them. `localize` makes this rank's
    plain tensor of one that is held for all ranks.
    """

    name: str
    geometry: Geometry
    treatment: Treatment
    dtype: torch.dtype
    declared: dict[str, ParameterSpec]
    derived: dict[str, ParameterSpec]
    group: Group
    shard: Shard
    shards: tuple[Shard, ...]
    local: Geometry
    sharding: Sharding = staticmethod(replicated)
    localize: Localize | None = None
    aliases: tuple[str, ...] = ()
    """Further names of the layer's parts, for loading them by hand."""

    def take_share(self, group: Group, sharding: Sharding) -> None:
        """Be this rank's share, as `group` has it. The tensors stay as they are: once they are cut, `settle_share`.

        Raises ShardError where a unit is split, before anything is changed.
        """
        specs = tuple(self.specs.values())
        self.have_share(group, sharding, find_share(self.geometry, sharding, specs, self.name, group.rank, group.size))

    def have_share(self, group: Group, sharding: Sharding, share: Share) -> None:
        """As `take_share`, of what has been worked out already."""
        self.group, self.sharding = group, sharding
        self.shard, self.shards, self.divided, self.local = share.shard, share.shards, share.divided, share.local

    def settle_share(self) -> None:
        """Work out what follows from all ranks' shards, and from the tensors that are there."""

    def settle_tensors(self) -> None:
        """Work out what follows from the tensors that are there."""

    @property
    def specs(self) -> dict[str, ParameterSpec]:
        """The declaration of every tensor that the layer can have, by name."""
        return {**self.declared, **self.derived}

    def allocate(self, device: torch.device | str) -> None:
        """Make every declared tensor on `device`, in the first dtype that its declaration allows, unwritten.

        Padding is zero.
        """
        self.reset()
        for spec in self.declared.values():
            dtype = self.geometry.dtype if spec.cast else spec.dtypes[0]
            identity = self._identify(spec)
            blank = identity.make_blank(dtype, torch.device(device))
            self.register_parameter(spec.name, TypedParameter(blank, identity))
        self.settle_tensors()

    def outline(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """As `allocate` without memory, of what has those shapes."""
        for spec in self.declared.values():
            dtype = torch_dtype(self.geometry.dtype if spec.cast else spec.dtypes[0])
            blank = torch.empty(shapes[spec.name], dtype=dtype, device="meta")
            self.register_parameter(spec.name, TypedParameter(blank, self._identify(spec)))
        self.settle_tensors()

    def find_parameter(self, name: str) -> TypedParameter | None:
        """The tensor of that name; None where the layer has none, or one that something else put in its place."""
        found: Any = self._parameters.get(name)
        return found if is_typed(found) else None

    def local_shape(self, spec: ParameterSpec) -> tuple[int, ...]:
        """The shape that a tensor of that declaration has on this rank."""
        return spec.layout.local_shape(self.geometry.extents, self.local.extents)

    def set_tensor(self, name: str, tensor: Tensor | None) -> None:
        """Put a tensor in a declared or derived one's place; None takes it away, and gives its memory back."""
        self.set_tensors({name: tensor})

    def set_tensors(self, tensors: Mapping[str, Tensor | None]) -> None:
        """As `set_tensor`, several at once."""
        specs = self.specs
        for name, tensor in tensors.items():
            parameter = None
            if tensor is not None:
                identity = self._identify(specs[name])
                parameter = TypedParameter(tensor, identity, identity.owned)
            self.register_parameter(name, parameter)
        if tensors:
            self.settle_tensors()

    def own_tensor(self, name: str) -> Tensor | None:
        """A tensor of this rank, plain however it is held; None where the layer has none of that name."""
        held: Tensor | None = getattr(self, name, None)
        return held if held is None or self.localize is None else self.localize(held)

    def get_parameter(self, target: str) -> nn.Parameter:
        """As of any module; of those held for all ranks, this one's share."""
        held = super().get_parameter(target)
        if self.localize is None or target not in self._parameters:
            return held
        own = self.localize(held)
        return held if own is held else nn.Parameter(own, requires_grad=False)

    def derive(self, spec: ParameterSpec, tensor: Tensor) -> None:
        """Give the layer a tensor that no checkpoint stores, for a post-load hook that repacks.

        The hooks see it under its own name, cut into pieces by its axes as any declared one. An axis of
        experts is added in front, as for declarations. Loading again takes it away before the hook runs.
        Raises ModelError for a declared name, or a shape that is not this rank's share.
        """
        spec = stack_experts(spec, self.geometry)
        if spec.name in self.declared:
            raise ModelError("a derived tensor needs a name of its own", where=f"{self.name}.{spec.name}")
        shape = self.local_shape(spec)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                "a derived tensor does not have the shape of its axes",
                where=f"{self.name}.{spec.name}",
                expected=str(list(shape)),
                found=str(list(tensor.shape)),
            )
        self.derived[spec.name] = spec
        self.set_tensor(spec.name, tensor)

    def reset(self) -> None:
        """Take away what a post-load hook derived."""
        for name in self.derived:
            delattr(self, name)
        self.derived = {}

    def _identify(self, spec: ParameterSpec) -> Identity:
        return Identity(self.name, spec, self.geometry, self.shard, self.treatment, self.aliases)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Holder":
        """Move without casting what a method stores: `.half()` must not turn scales into another dtype."""
        kept = {id(getattr(self, name)) for name, spec in self.specs.items() if not spec.cast}
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device="cpu")).dtype

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            changed = id(tensor) in kept and moved.dtype != tensor.dtype
            moved = tensor.to(moved.device) if changed else moved
            # torch cannot make a parameter of what is a typed one already.
            return tensor.detach() if moved is tensor else moved

        with self._keep_types():
            super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        with self._keep_types():
            super()._load_from_state_dict(*arguments, **options)

    @contextmanager
    def _keep_types(self) -> Iterator[None]:
        """Whatever parameters are put in place of others, they are to know what those knew."""
        typed = [(name, each) for name in self._parameters if (each := self.find_parameter(name)) is not None]
        known = [(name, each, dict(vars(each))) for name, each in typed]
        yield
        for name, before, attributes in known:
            self._parameters[name] = retype(self._parameters[name], before, attributes)

    def extra_repr(self) -> str:
        experts = f"experts={self.local.experts}, " if self.local.experts is not None else ""
        shard = f", rank {self.shard.rank} of {self.shard.size}" if self.shard.size > 1 else ""
        return (
            f"{experts}in_features={self.local.in_features}, out_features={self.local.out_features}, "
            f"{self.treatment.label}{shard}"
        )
