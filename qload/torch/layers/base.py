"""What every layer is: declared tensors of one rank's share, and a method's hooks to compute with them."""

from collections.abc import Callable, Sequence, Set
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from qload.declare import ParameterSpec
from qload.errors import ModelError
from qload.geometry import Geometry, Kind, Shard, Sharding
from qload.layout import Dim
from qload.plan import Source
from qload.quantization import Treatment
from qload.torch.hooks import bind
from qload.torch.kernels import Case, Make, Table
from qload.torch.layers.feeding import Place, finish_loading, list_places, load_place
from qload.torch.layers.holding import Holder
from qload.torch.layers.joining import join_biases, pad
from qload.torch.layers.packing import DEQUANTIZES, PLAIN, Packed, Path, pack_pieces
from qload.torch.parallel import Group, maximize
from qload.torch.pieces import Piece, Selection, cast_scale, pick_expert, select_pieces, select_sample
from qload.torch.sites import Site

_ALONE = Group()


class Layer(Holder):
    """A layer of which this rank holds one shard, in whatever form its method stores it.

    The parameters are on the meta device until `allocate` or a load makes them. `sources` are the modules of
    the checkpoint that fill it. `apart` names the layers inside this one that hold a part each, where its parts are
    held apart. Raises ShardError where the site's rank and size split a unit.
    """

    apart: tuple[str, ...] = ()
    packed: Packed | None
    _selections: tuple[Selection, ...]
    _peers: Group | None = None

    def __init__(
        self,
        geometry: Geometry,
        sources: Sequence[Source],
        site: Site,
        treatment: Treatment,
        sharding: Sharding | None = None,
    ) -> None:
        super().__init__()
        self.name = site.name
        self.geometry = geometry
        self.sources = tuple(sources)
        self.treatment = treatment
        self.packed = None
        self.path = PLAIN if treatment.scheme is None else Path(DEQUANTIZES, "its kernel was not chosen")
        self.hooks = bind(treatment.method.runtime)
        self.check_hooks()
        self.quantize_activations = True
        self.dtype = site.dtype
        self.declared = {spec.name: spec for spec in site.quantization.declare(treatment, geometry) if spec.loaded}
        self.derived = {}
        sharding, group = sharding or self.sharding, site.group
        share = site.quantization.share(site.name, treatment, geometry, sharding, group.rank, group.size)
        self.have_share(group, sharding, share)
        self.outline(share.shapes)

    def check_hooks(self) -> None:
        """Raises CapabilityError where the layer's method lacks a hook that the layer cannot do without."""

    @property
    def computes(self) -> bool:
        """Whether it multiplies by its weight: tables are looked up, and caches rounded."""
        return self.geometry.kind not in (Kind.EMBEDDING, Kind.KV_CACHE)

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

    def parts_apart(self) -> "list[Layer]":
        """The layers that hold a part each, where they are held apart."""
        return [self.get_submodule(name) for name in self.apart]  # type: ignore[misc]

    @property
    def loaded_shard(self) -> Shard:
        """The share of the layer that a load fills."""
        return self.shard

    def prepare(self, present: Set[str]) -> None:
        """Make ready for a load that fills the tensors of the names `present`.

        What an earlier load derived goes, and the optional tensors that the checkpoint does not have.
        """
        if self.packed is not None:
            # Taken out first, for a module that is None is one all the same.
            del self.packed
            self.packed = None
        self.reset()
        self.set_tensors(dict.fromkeys(self.declared.keys() - present))

    def complete(self, name: str, tensor: Tensor) -> None:
        """Add to a tensor that a load has filled what the layer keeps of what is there."""

    def pack(self, table: Table, make: Make | None = None) -> None:
        """Choose a kernel of the table for what has been loaded, and let it hold the weight in place of what is stored.

        `make` makes memory for packed tensors. Where no kernel serves, `path` says why, and all stays as it is.
        Raises PluginError where the method's hook for kernels is broken.
        """
        is_empty = not (self.local.out_features and self.local.in_features)
        if not self.computes or self.treatment.scheme is None or is_empty:
            return
        device = next(self.parameters()).device
        case = Case(device, self.dtype, self.local.experts, make)
        self.packed, self.path = pack_pieces(self.hooks, self, table, case)
        if self.packed is not None:
            self.packed.rounds = self.quantize_activations
            self.reset()
            self.set_tensors(dict.fromkeys(self.declared.keys() - {"bias"}))

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where in the layer each tensor goes that a checkpoint stores for it, by the names that it can have there."""
        return list_places(self)

    def load(self, name: str, tensor: Tensor, *, synchronize: Callable[[], None] | None = None) -> int:
        """Copy this rank's share of the whole tensor that a checkpoint stores under that name.

        Returns the entries written. Raises ParameterError for a name that is not one of `places`, and whatever
        the parameter's own `load` does. Once all are loaded, `finish` is to be called.
        """
        return load_place(self, name, tensor, synchronize)

    def finish(self) -> None:
        """Run the method's post-load hook on what has been loaded by hand, and take away what is not stored.

        Raises CheckpointError with everything that the layer needs and that has not been loaded.
        """
        if finish_loading(self):
            self.hooks.process(self)

    def settle_share(self) -> None:
        super().settle_share()
        self.settle_tensors()

    def settle_tensors(self) -> None:
        if self.packed is not None:
            return
        if self.apart:
            self._selections = tuple(each for part in self.parts_apart() for each in part._selections)
            return
        self._selections = select_pieces(self._list_present(), self.geometry, self.local)

    def own_tensor(self, name: str) -> Tensor | None:
        if self.apart and name == "bias":
            return join_biases([part.own_tensor(name) for part in self.parts_apart()])
        return super().own_tensor(name)

    def pieces(self, expert: int | Tensor | None = None, dtype: torch.dtype | None = None) -> list[Piece]:
        """The layer's parts, of one expert, as the hooks see them.

        With `dtype`, scales are cast to it first, so that the hooks compute in it.
        """
        if self.apart:
            return [piece for part in self.parts_apart() for piece in part.pieces(expert, dtype)]
        return [self._piece(selection, expert, dtype) for selection in self._selections]

    def piece(self, number: int, expert: int | None = None) -> Piece:
        """One of `pieces`."""
        if self.apart:
            return self.pieces(expert)[number]
        return self._piece(self._selections[number], expert, None)

    def sample(self) -> Piece:
        """Some rows, of the first expert, for trying hooks on; the greatest piece where rows hold together."""
        expert = None if self.local.experts is None else 0
        selection = None if self.apart else select_sample(self._list_present(), self.geometry, self.local)
        if selection is None:
            return max(self.pieces(expert), key=lambda piece: piece.out_features)
        piece = self._piece(selection, expert, None)
        for name in selection.indices:
            # As a rank would have them that holds these rows and no others.
            setattr(piece, name, getattr(piece, name).contiguous())
        return piece

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

    def compute(self, x: Tensor, expert: int | Tensor | None = None, *, biased: bool = True) -> Tensor:
        """x [..., in_features] into [..., out_features] with this rank's weight and bias, and no other rank's.

        Where ranks divide the inputs, and their outputs are to be summed, the first one adds the bias. They then talk
        only to agree on scales of the inputs, where the method finds some.
        """
        has_bias = biased and self.shard.in_.start == 0 and (self.apart or "bias" in self.specs)
        bias = self.own_tensor("bias") if has_bias else None
        bias = None if bias is None else pick_expert(bias, expert)
        last, biases = x.dim() - 1, self._split_bias(bias)
        if self.packed is not None:
            outputs = self.packed(x, expert, biases, self.agree, rounds=self._must_round())
        else:
            pieces = zip(self.pieces(expert), biases, strict=True)
            outputs = [self.hooks.apply(piece, x, part) for piece, part in pieces]
        return self._join(outputs, last)

    def _must_round(self) -> bool:
        """Raises ModelError where inputs are to be rounded and the kernel was chosen for such as are not."""
        if self.quantize_activations and self.packed is not None and not self.packed.rounds:
            raise ModelError(
                "the layer was packed for inputs that are not quantized",
                where=self.name,
                found="quantize_activations was set once the layer was loaded",
                remedy="load it again with quantize_activations=True",
            )
        return self.quantize_activations

    def _dequantize(self, expert: int | None, dtype: torch.dtype | None) -> Tensor:
        if self.packed is not None:
            weight = self._join(self.packed.dequantize(expert, dtype), 0)
        else:
            weight = self._join([self.hooks.dequantize(piece) for piece in self.pieces(expert, dtype)], 0)
        return weight if dtype is None else weight.to(dtype)

    def _join(self, parts: list[Tensor], dim: int) -> Tensor:
        """Put the parts together along `dim`, as the layer has them, with the padding that solid tensors lack."""
        sizes = [selection.out_features for selection in self._selections]
        if len(parts) == 1:
            return pad(parts[0], dim, self.local.out_features - sizes[0])
        if self.geometry.interleaved:
            return torch.stack(parts, dim + 1).flatten(dim, dim + 1)
        lacking = [part.size - size for part, size in zip(self.local.parts, sizes, strict=True)]
        return torch.cat([pad(part, dim, count) for part, count in zip(parts, lacking, strict=True)], dim)

    def _split_bias(self, bias: Tensor | None) -> list[Tensor | None]:
        """Each piece's own share of the bias."""
        sizes = [selection.out_features for selection in self._selections]
        if bias is None:
            return [None] * len(sizes)
        if self.geometry.interleaved:
            return [bias[number :: len(sizes)] for number in range(len(sizes))]
        starts = accumulate((part.size for part in self.local.parts), initial=0)
        return [bias[start : start + size] for start, size in zip(starts, sizes, strict=False)]

    def _list_present(self) -> list[ParameterSpec]:
        return [spec for name, spec in self.specs.items() if getattr(self, name, None) is not None]

    def _piece(self, selection: Selection, expert: int | Tensor | None, dtype: torch.dtype | None) -> Piece:
        tensors: dict[str, Tensor | None] = {}
        for name, spec in self.specs.items():
            tensor = self.own_tensor(name)
            if tensor is not None:
                index = selection.indices[name]
                tensor = pick_expert(tensor[index if expert is None else (slice(None), *index)], expert)
                tensor = tensor if dtype is None else cast_scale(tensor, spec, dtype)
            tensors[name] = tensor
        return Piece(
            self.treatment.scheme,
            selection.out_features,
            self.local.in_features,
            self.quantize_activations,
            self.agree,
            tensors,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Layer":
        """On another kind of device other kernels compute, for which the weights are packed anew."""
        if self.packed is not None:
            device = fn(torch.empty(0, device=self.packed.device)).device
            if device.type not in (self.packed.device.type, "meta"):
                self.packed = self.packed.move(device, self.dtype)
                self.path = self.packed.path
        super()._apply(fn, recurse)
        return self

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """Make the weight dense for code that reaches past a layer's forward for `weight`, as some models do."""
        if name == "weight" and "weight" not in self.specs:
            return self.dequantize().to(self.dtype)
        return super().__getattr__(name)
