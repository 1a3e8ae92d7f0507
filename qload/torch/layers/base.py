"""What every layer is: declared tensors of one rank's share, and a method's hooks to compute with them."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qload.declare import ParameterKind, ParameterSpec, stack_experts
from qload.errors import ModelError
from qload.geometry import Geometry, Sharding, replicated
from qload.layout import Dim
from qload.plan import Source
from qload.quantization import Treatment
from qload.sharding import cut_layer, divided_dims
from qload.torch.dtypes import make_filled
from qload.torch.hooks import bind
from qload.torch.parallel import Group, maximize
from qload.torch.pieces import Piece, Selection, select_pieces
from qload.torch.sites import Site

_ALONE = Group()


class Layer(nn.Module):
    """A layer of which this rank holds one shard, in whatever form its method stores it.

    The parameters are on the meta device until `allocate` or a load makes them. `sources` are the modules of
    the checkpoint that fill it. `shards` are those of all ranks of its `group`, `shard` this one's, and `divided` the
    dimensions in which they differ. `declared` are the tensors that its method declares, `derived` those that the
    method's post-load hook made of them. Raises ShardError where the site's rank and size split a unit.
    """

    _selections: tuple[Selection, ...]
    _peers: Group | None = None

    def __init__(
        self,
        geometry: Geometry,
        sources: Sequence[Source],
        site: Site,
        treatment: Treatment,
        sharding: Sharding = replicated,
    ) -> None:
        super().__init__()
        self.name = site.name
        self.geometry = geometry
        self.sources = tuple(sources)
        self.treatment = treatment
        self.hooks = bind(treatment.method.runtime)
        self.quantize_activations = True
        self.dtype = site.dtype
        specs = [spec for spec in site.quantization.declare(treatment, geometry) if spec.loaded]
        self.declared = {spec.name: spec for spec in specs}
        self.derived: dict[str, ParameterSpec] = {}
        self.group = site.group
        self.shard = cut_layer(geometry, sharding, specs, site.name, self.group.rank, self.group.size)
        self.shards = tuple(sharding(geometry, rank, self.group.size) for rank in range(self.group.size))
        self.divided = divided_dims(self.shards)
        self.local = self.shard.local(geometry)
        self.allocate("meta")

    @property
    def scheme(self) -> Any:
        """What the layer's method does to it, a value of the method's own; None where it is not quantized."""
        return self.treatment.scheme

    @property
    def peers(self) -> Group:
        """The ranks each of which hands its hooks a share of the same values, so that none alone knows the greatest."""
        if self._peers is not None:
            return self._peers
        return self.group if Dim.IN in self.divided else _ALONE

    def join(self, peers: Group) -> None:
        """Say that the hooks are handed a share of what they round, though the tensors are whole: some heads."""
        self._peers = peers

    @property
    def specs(self) -> dict[str, ParameterSpec]:
        """The declaration of every tensor that the layer can have, by name."""
        return {**self.declared, **self.derived}

    def allocate(self, device: torch.device | str) -> None:
        """Make every declared tensor on `device`, in the first dtype that its declaration allows, unwritten."""
        self.reset()
        for spec in self.declared.values():
            dtype = self.geometry.dtype if spec.cast else spec.dtypes[0]
            self._register(spec.name, make_filled(self.local_shape(spec), dtype, spec.fill, torch.device(device)))
        self._select()

    def local_shape(self, spec: ParameterSpec) -> tuple[int, ...]:
        """The shape that a tensor of that declaration has on this rank."""
        return spec.layout.local_shape(self.geometry.extents, self.local.extents)

    def set_tensor(self, name: str, tensor: Tensor | None) -> None:
        """Put a tensor in a declared or derived one's place; None takes it away, and gives its memory back."""
        self._register(name, tensor)
        self._select()

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

    def _register(self, name: str, tensor: Tensor | None) -> None:
        parameter = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
        self.register_parameter(name, parameter)

    def _select(self) -> None:
        present = (spec for name, spec in self.specs.items() if getattr(self, name, None) is not None)
        self._selections = select_pieces(present, self.geometry, self.local)

    def pieces(self, expert: int | None = None, dtype: torch.dtype | None = None) -> list[Piece]:
        """The layer's parts, of one expert, as the hooks see them.

        With `dtype`, scales are cast to it first, so that the hooks compute in it.
        """
        return [self._piece(selection, expert, dtype) for selection in self._selections]

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as the method means it, [out_features, in_features], or [experts, ...] of that.

        Of this rank's share, padding included; in the dtype of the stored scales, or computed in `dtype`.
        """
        if self.local.experts is None:
            return self._dequantize(None, dtype)
        return torch.stack([self._dequantize(expert, dtype) for expert in range(self.local.experts)])

    def agree(self, greatest: Tensor) -> Tensor:
        """The greatest of what all `peers` found in their shares, element by element, on each of them.

        All of them have to call it, with the same shape. Raises ParallelError where they have no process group.
        """
        return maximize(greatest, self.peers)

    def compute(self, x: Tensor, expert: int | None = None, *, biased: bool = True) -> Tensor:
        """x [..., in_features] into [..., out_features] with this rank's weight and bias, and no other rank's.

        Where ranks divide the inputs, and their outputs are to be summed, the first one adds the bias. They then talk
        only to agree on scales of the inputs, where the method finds some.
        """
        bias = getattr(self, "bias", None) if biased and self.shard.in_.start == 0 else None
        if bias is not None and expert is not None:
            bias = bias[expert]
        pieces, last = self.pieces(expert), x.dim() - 1
        biases = self._split_bias(bias, pieces)
        outputs = [self.hooks.apply(piece, x, part) for piece, part in zip(pieces, biases, strict=True)]
        return self._pad(self._join(outputs, last), last)

    def _dequantize(self, expert: int | None, dtype: torch.dtype | None) -> Tensor:
        weight = self._pad(self._join([self.hooks.dequantize(piece) for piece in self.pieces(expert, dtype)], 0), 0)
        return weight if dtype is None else weight.to(dtype)

    def _join(self, parts: list[Tensor], dim: int) -> Tensor:
        """Put the parts together along `dim`, as the layer has them."""
        if len(parts) == 1:
            return parts[0]
        if self.geometry.interleaved:
            return torch.stack(parts, dim + 1).flatten(dim, dim + 1)
        return torch.cat(parts, dim)

    def _pad(self, tensor: Tensor, dim: int) -> Tensor:
        """Add along `dim` the padding for which solid tensors have no room."""
        lacking = self.local.out_features - sum(selection.out_features for selection in self._selections)
        if lacking == 0:
            return tensor
        return F.pad(tensor, (0, 0) * (tensor.dim() - 1 - dim) + (0, lacking))

    def _split_bias(self, bias: Tensor | None, pieces: Sequence[Piece]) -> list[Tensor | None]:
        """Each piece's own share of the bias."""
        if bias is None:
            return [None] * len(pieces)
        if self.geometry.interleaved:
            return [bias[number :: len(pieces)] for number in range(len(pieces))]
        ends = list(accumulate(piece.out_features for piece in pieces))
        return [bias[end - piece.out_features : end] for piece, end in zip(pieces, ends, strict=True)]

    def _piece(self, selection: Selection, expert: int | None, dtype: torch.dtype | None) -> Piece:
        tensors: dict[str, Tensor | None] = {}
        for name, spec in self.specs.items():
            tensor = getattr(self, name)
            if tensor is not None:
                index = selection.indices[name]
                tensor = tensor[index if expert is None else (expert, *index)]
                tensor = tensor if dtype is None else _cast_scale(tensor, spec, dtype)
            tensors[name] = tensor
        return Piece(
            self.treatment.scheme,
            selection.out_features,
            self.local.in_features,
            self.quantize_activations,
            self.agree,
            tensors,
        )

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """Make the weight dense for code that reaches past a layer's forward for `weight`, as some models do."""
        if name == "weight" and "weight" not in self.specs:
            return self.dequantize().to(self.dtype)
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Layer":
        """Move without casting what a method stores: `.half()` must not turn scales into another dtype."""
        kept = {id(getattr(self, name)) for name, spec in self.specs.items() if not spec.cast}
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device="cpu")).dtype

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            changed = id(tensor) in kept and moved.dtype != tensor.dtype
            return tensor.to(moved.device) if changed else moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        experts = f"experts={self.local.experts}, " if self.local.experts is not None else ""
        shard = f", rank {self.shard.rank} of {self.shard.size}" if self.shard.size > 1 else ""
        return (
            f"{experts}in_features={self.local.in_features}, out_features={self.local.out_features}, "
            f"{self.treatment.label}{shard}"
        )


def _cast_scale(tensor: Tensor, spec: ParameterSpec, dtype: torch.dtype) -> Tensor:
    """Scales, and what is computed with like them.

    8-bit floats keep the dtype that gives them meaning, and float32 is not narrowed: who stores it computes in it.
    """
    computed = spec.kind.is_scale or spec.kind in (ParameterKind.ZERO_POINT, ParameterKind.WEIGHT)
    return tensor.to(dtype) if computed and tensor.dtype in (torch.float16, torch.bfloat16) else tensor
