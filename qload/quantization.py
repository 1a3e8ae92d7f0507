"""A checkpoint's method with its config, and what that method does to each module."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from qload.calls import call
from qload.checkpoint import Modules, TensorEntry
from qload.checkpoint.names import list_children
from qload.declare import ParameterSpec, complete
from qload.findings import Finding
from qload.geometry import Geometry, Kind
from qload.hookspecs import ModuleInfo, Scheme
from qload.numbers import Blurring, Numbers, find_numbers
from qload.registry import UNQUANTIZED, Method, Registry


@dataclass(frozen=True, slots=True, eq=False)
class Treatment:
    """A method and what it does to one module; without a scheme the module is not quantized.

    Modules that a quantization treats alike share one treatment.
    """

    method: Method
    scheme: Scheme | None

    @property
    def label(self) -> str:
        """The method and its scheme in words, the same for all modules treated alike."""
        return self.method.name if self.scheme is None else f"{self.method.name} {self.scheme}"

    def declare(self, geometry: Geometry) -> tuple[ParameterSpec, ...]:
        """The tensors of a layer treated so, its bias and axis of experts included.

        Raises PluginError where the plugin does not declare them properly.
        """
        create = self.method.declaration["qload_create_weights"]
        return complete(create(self.scheme, geometry), geometry)


@dataclass(slots=True)
class Quantization:
    """A checkpoint's method with its config, and the method for everything that it leaves alone.

    `section` is the config as it was written. `modules` are the names of the tensors stored below each module,
    `tensors` the entries of all, and `descriptions` what the weight files' metadata says of names below each module.
    `is_to_be_made` says that the checkpoint is plain, and the method quantizes it while it is loaded.
    `findings` are what is wrong with the config, and does not keep anybody from reading it.
    """

    method: Method
    unquantized: Method
    config: BaseModel | None = None
    section: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_to_be_made: bool = False
    findings: tuple[Finding, ...] = ()
    modules: Modules = field(default_factory=dict, repr=False)
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict, repr=False)
    descriptions: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict, repr=False)
    _children: Mapping[str, Sequence[str]] | None = field(default=None, init=False, repr=False)
    _numbers: Numbers | None = field(default=None, init=False, repr=False)
    _blurring: Blurring = field(default_factory=Blurring, init=False, repr=False)
    _treated: dict[Hashable, Treatment] = field(default_factory=dict, init=False, repr=False)
    _treatments: dict[Scheme | None, Treatment] = field(default_factory=dict, repr=False)
    _declared: dict[tuple[str, Scheme | None, Geometry], tuple[ParameterSpec, ...]] = field(
        default_factory=dict, repr=False
    )

    def treat(self, module: ModuleInfo) -> Treatment:
        """What is done to a module, given what the checkpoint stores below its name.

        A method that has nothing to do with caches is not asked about attention modules. Raises ValueError
        where the config asks for what the method cannot do, PluginError where the plugin itself fails.
        """
        if module.kind is Kind.KV_CACHE and not self.method.info.capabilities.kv_cache:
            return self._treatment(None)
        likeness = self._liken(module)
        if likeness is None:
            return self._ask(module)
        found = self._treated.get(likeness)
        if found is None:
            found = self._treated[likeness] = self._ask(module)
        return found

    @property
    def numbers(self) -> Numbers:
        """Where numbers in modules' names mean something to the method."""
        if self._numbers is None:
            by_place = self.method.info.is_by_place
            self._numbers = find_numbers(self.section) if by_place else Numbers(everywhere=True)
        return self._numbers

    def _liken(self, module: ModuleInfo) -> Hashable | None:
        """What modules share that are treated alike; None for one that is asked about by itself."""
        if self.numbers.everywhere or self.descriptions or module.stored or module.described:
            return None
        blurred = tuple([self._blurring.blur(name) for name in module.names])
        if self.numbers.places and any(map(self.numbers.matter_in, blurred)):
            return None
        key: list[Hashable] = [blurred, module.kind, module.classes]
        # A loop of few words, for it runs for every expert.
        for leaf, name in self._names(module.name, module.kind).items():
            entry = self.tensors.get(name)
            key += (leaf,) if entry is None else (leaf, entry.dtype, entry.shape)
        return tuple(key)

    def _ask(self, module: ModuleInfo) -> Treatment:
        module = self._complete(module)
        return self._treatment(self.method.declaration["qload_scheme_for"](self.config, module, where=module.name))

    def _names(self, module: str, kind: Kind) -> Mapping[str, str]:
        """The names of the tensors that a module stores; for an attention also those of the modules right below it.

        Its keys and values are those of projections, beside which some tools store what is said of them.
        """
        own = self.modules.get(module, {})
        if kind is not Kind.KV_CACHE:
            return own
        if self._children is None:
            self._children = list_children(self.modules)
        children = {child: self.modules[f"{module}.{child}"] for child in self._children.get(module, ())}
        below = {f"{child}.{leaf}": name for child, stored in children.items() for leaf, name in stored.items()}
        return {**below, **own}

    def _complete(self, module: ModuleInfo) -> ModuleInfo:
        """The module with what the checkpoint says of it, where it has not been said."""
        tensors, stored = module.tensors, module.stored
        if not stored:
            names = self._names(module.name, module.kind)
            stored = frozenset(names)
            tensors = {leaf: self.tensors[name] for leaf, name in names.items() if name in self.tensors}
        described = next((self.descriptions[name] for name in module.names if name in self.descriptions), {})
        return replace(module, stored=stored, tensors=tensors, described=module.described or described)

    def _treatment(self, scheme: Scheme | None) -> Treatment:
        if scheme not in self._treatments:
            method = self.method if scheme is not None else self.unquantized
            self._treatments[scheme] = Treatment(method, scheme)
        return self._treatments[scheme]

    def declare(self, treatment: Treatment, geometry: Geometry) -> tuple[ParameterSpec, ...]:
        """As `treatment.declare`, worked out once for each geometry."""
        key = (treatment.method.name, treatment.scheme, geometry)
        if key not in self._declared:
            self._declared[key] = treatment.declare(geometry)
        return self._declared[key]


def unquantized(registry: Registry, modules: Modules | None = None) -> Quantization:
    """What loads a checkpoint to which no method does anything."""
    method = registry.method(UNQUANTIZED)
    return Quantization(method, method, modules=modules or {})


def read_config(method: Method, section: Mapping[str, Any]) -> BaseModel | None:
    """A method's config, or None for a method without one. Raises ValidationError where it breaks the schema."""
    if method.info.config is None:
        return None
    validate = method.info.config.model_validate
    config: BaseModel = call(method.origin, "its config model", validate, section, meant=(ValidationError,))
    return config
