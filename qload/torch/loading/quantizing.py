"""Quantizes a plain checkpoint while it is loaded: what a method makes of a weight stands in the weight's place.

The plan is made as if the checkpoint were quantized already; what is then read of it is made when it is first asked
for, whole, so that every rank cuts its share from the same numbers, and forgotten once its last copy is done.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from qload.answers import AnswerError
from qload.calls import call
from qload.checkpoint import Checkpoint, TensorEntry
from qload.declare import ParameterSpec
from qload.dtypes import storage_bytes
from qload.errors import MethodError
from qload.geometry import Geometry, Kind, Part
from qload.layout import Interval
from qload.plan import Copy, Source, Target
from qload.quantization import Quantization, Treatment
from qload.torch.dtypes import dtype_code, torch_dtype
from qload.torch.loading.holding import copy_stored
from qload.torch.loading.orders import Order, Reader, reading
from qload.torch.memory import make_afresh

HOOK = "qload_quantize"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A stored weight, what is done to it, and the declared tensors that it becomes, by their names on disk.

    `geometry` is that of the stored weight, whose rows are one part.
    """

    entry: TensorEntry
    treatment: Treatment
    geometry: Geometry
    specs: Mapping[str, ParameterSpec]

    def make(self, weight: Tensor) -> dict[str, Tensor]:
        """The tensors by their names on disk: of every expert, where the weight is a stack of them.

        Raises MethodError where the method refuses the scheme, PluginError where its answer is not as declared.
        """
        if self.geometry.experts is None:
            return self._make_one(weight)
        made = [self._make_one(each) for each in weight]
        return {name: torch.stack([each[name] for each in made]) for name in made[0]}

    def _make_one(self, weight: Tensor) -> dict[str, Tensor]:
        method, scheme = self.treatment.method, self.treatment.scheme
        hook, read = method.runtime[HOOK], _MadeReader(self.specs, self.geometry)
        meant = (ValueError, torch.OutOfMemoryError)
        try:
            made: dict[str, Tensor] = call(
                method.origin, HOOK, hook, weight, scheme, where=self.entry.name, read=read, meant=meant
            )
        except ValueError as error:
            what = f"{self.treatment.label} cannot be made while loading: {error}"
            raise MethodError(what, method=method.name, where=self.entry.name) from error
        return made


@dataclass(frozen=True, slots=True)
class _MadeReader:
    """Takes tensors by their declared names, in their declared shapes and dtypes, for an answer."""

    specs: Mapping[str, ParameterSpec]
    geometry: Geometry

    def __call__(self, answer: object) -> dict[str, Tensor]:
        if not isinstance(answer, Mapping):
            raise AnswerError(f"returns {type(answer).__name__}, not tensors by name")
        stored = {spec.name: name for name, spec in self.specs.items()}
        unknown = [str(name) for name in answer if name not in stored]
        missing = [spec.name for spec in self.specs.values() if spec.required and spec.name not in answer]
        if unknown or missing:
            told = f"names {', '.join(unknown)}" if unknown else f"leaves out {', '.join(missing)}"
            raise AnswerError(f"{told}; it declares {', '.join(stored)}")
        return {stored[name]: self._check(self.specs[stored[name]], tensor) for name, tensor in answer.items()}

    def _check(self, spec: ParameterSpec, tensor: object) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise AnswerError(f"returns {type(tensor).__name__} for {spec.name}, not a tensor")
        shape = spec.layout.shape(replace(self.geometry, experts=None).extents)
        code = dtype_code(tensor.dtype)
        if not spec.matches(tuple(tensor.shape), shape) or code not in spec.dtypes:
            wanted = f"{' or '.join(spec.dtypes)} {list(shape)}"
            raise AnswerError(f"returns {code} {list(tensor.shape)} for {spec.name}, not {wanted}")
        return tensor.contiguous()


def plan_recipes(
    checkpoint: Checkpoint, quantization: Quantization, targets: Sequence[Target]
) -> tuple[Checkpoint, list[Target], dict[str, Recipe]]:
    """The checkpoint as it will be, the targets that it fills, and the recipe of each tensor that is to be made.

    A layer whose weights are not all there as they should be is left a plain target, about which the plan then says
    what is wrong. Raises MethodError where a method refuses its scheme.
    """
    entries, recipes = dict(checkpoint.tensors), dict[str, Recipe]()
    shapes = _Shapes()
    chosen = []
    for target in targets:
        found = list(_find_recipes(target, checkpoint, quantization))
        if not all(found):
            target = replace(target, treatment=Treatment(quantization.unquantized, None))
            found = []
        chosen.append(target)
        for prefix, recipe in (pair for pair in found if pair is not None):
            entries.pop(recipe.entry.name, None)
            for entry in shapes.list_entries(prefix, recipe):
                entries[entry.name], recipes[entry.name] = entry, recipe
    return replace(checkpoint, tensors=entries), chosen, recipes


def _find_recipes(
    target: Target, checkpoint: Checkpoint, quantization: Quantization
) -> Iterator[tuple[str, Recipe] | None]:
    """The recipe of each source of a layer that is to be quantized; None for one that cannot be read as planned."""
    if target.treatment.scheme is None or target.geometry.kind is Kind.KV_CACHE:
        return
    for source in target.sources:
        geometry = _flatten(source, target.geometry)
        entry = checkpoint.tensors.get(f"{source.prefix}.weight")
        plain = quantization.declare(Treatment(quantization.unquantized, None), geometry)
        weight = next(spec for spec in plain if spec.name == "weight")
        if entry is None or entry.shape != weight.layout.shape(geometry.extents) or entry.dtype not in weight.dtypes:
            yield None
            continue
        declared = quantization.declare(target.treatment, replace(geometry, experts=None, bias=False))
        specs = {spec.stored_as: spec for spec in declared if spec.loaded}
        yield source.prefix, Recipe(entry, target.treatment, geometry, specs)


def _flatten(source: Source, layer: Geometry) -> Geometry:
    """The geometry of a stored weight, as one part."""
    stored = source.geometry(layer)
    return replace(stored, parts=(Part("", stored.out_features),), interleaved=False, bias=False)


class _Shapes:
    """What a method makes of weights of one scheme and shape, found once, without data."""

    def __init__(self) -> None:
        self._known: dict[object, dict[str, Tensor]] = {}

    def list_entries(self, prefix: str, recipe: Recipe) -> Iterator[TensorEntry]:
        key = (recipe.treatment, recipe.geometry)
        if key not in self._known:
            dtype = torch_dtype(recipe.geometry.dtype)
            self._known[key] = recipe.make(torch.empty(recipe.entry.shape, dtype=dtype, device="meta"))
        for name, tensor in self._known[key].items():
            code = dtype_code(tensor.dtype)
            size = storage_bytes(code, tensor.numel())
            yield TensorEntry(f"{prefix}.{name}", code, tuple(tensor.shape), recipe.entry.file, 0, size)


class _Making(NamedTuple):
    """The tag of an order for a weight that something is to be made of."""

    recipe: Recipe


class QuantizingReader:
    """Reads through another reader, and makes what is to be quantized of what that reads, on `device`.

    What is made is copied at once into what was ordered of it, and kept only for what the plan still lacks of it.
    """

    def __init__(
        self, reader: Reader, recipes: Mapping[str, Recipe], copies: Iterable[Copy], device: torch.device
    ) -> None:
        self._reader = reader
        self._recipes = recipes
        self._device = device
        self._copies_left = Counter(copy.entry.name for copy in copies)
        self._made: dict[str, Tensor] = {}
        self._waiting: dict[str, list[Order]] = {}
        self._ready: list[Order] = []

    @property
    def bytes_read(self) -> int:
        return self._reader.bytes_read

    def read(self, orders: Iterable[Order]) -> Iterator[Order]:
        with reading(self._reader, self._forward(orders)) as landed:
            for order in landed:
                if isinstance(order.tag, _Making):
                    self._make(order.tag.recipe, order.destination)
                else:
                    yield order
                # The weight is to be freed before the next one is read.
                del order
                yield from self._take_ready()
        yield from self._take_ready()

    def close(self) -> None:
        self._made.clear()
        self._waiting.clear()
        self._ready.clear()
        self._reader.close()

    def _forward(self, orders: Iterable[Order]) -> Iterator[Order]:
        """The orders that the other reader is to fill: a weight in place of the first that is made of it."""
        for order in orders:
            name = order.copy.entry.name
            recipe = self._recipes.get(name)
            if recipe is None:
                yield order
            elif name in self._made:
                self._copy(order)
            elif recipe.entry.name in self._waiting:
                self._waiting[recipe.entry.name].append(order)
            else:
                self._waiting[recipe.entry.name] = [order]
                yield self._order_weight(recipe)

    def _order_weight(self, recipe: Recipe) -> Order:
        shape = recipe.entry.shape
        weight = make_afresh(shape, torch_dtype(recipe.geometry.dtype), self._device)
        region = tuple(Interval(0, size) for size in shape)
        return Order(Copy(recipe.entry, shape, region, region), weight, _Making(recipe))

    def _make(self, recipe: Recipe, weight: Tensor) -> None:
        prefix = recipe.entry.name.removesuffix("weight")
        with torch.no_grad():
            made = {f"{prefix}{leaf}": tensor for leaf, tensor in recipe.make(weight).items()}
        self._made |= {name: tensor for name, tensor in made.items() if self._copies_left[name]}
        del made
        for order in self._waiting.pop(recipe.entry.name):
            self._copy(order)

    def _copy(self, order: Order) -> None:
        name = order.copy.entry.name
        copy_stored(self._made[name], order.copy, order.destination)
        self._copies_left[name] -= 1
        if not self._copies_left[name]:
            del self._made[name]
        self._ready.append(order)

    def _take_ready(self) -> Iterator[Order]:
        while self._ready:
            yield self._ready.pop(0)
