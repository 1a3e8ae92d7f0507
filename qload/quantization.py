"""Which method a checkpoint was made with, and what that method does to each module."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from qload.calls import ask, call
from qload.checkpoint import Checkpoint, Modules, TensorEntry
from qload.checkpoint.names import group_below
from qload.declare import ParameterSpec, complete
from qload.errors import CheckpointError, MethodError
from qload.findings import Finding, report
from qload.geometry import Geometry, Kind
from qload.hookspecs import Claim, ModuleInfo, Scheme
from qload.registry import UNQUANTIZED, Method, Registry

SECTIONS = ("quantization_config", "compression_config")
"""The names that a model's config gives the section on quantization."""

_NESTED = ("text_config", "llm_config", "thinker_config")


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
    """

    method: Method
    unquantized: Method
    config: BaseModel | None = None
    section: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_to_be_made: bool = False
    modules: Modules = field(default_factory=dict, repr=False)
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict, repr=False)
    descriptions: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict, repr=False)
    _below: Modules | None = field(default=None, repr=False)
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
        module = self._complete(module)
        return self._treatment(self.method.declaration["qload_scheme_for"](self.config, module, where=module.name))

    def _names(self, module: str, kind: Kind) -> Mapping[str, str]:
        """The names of the tensors that a module stores; for an attention also those of the modules right below it.

        Its keys and values are those of projections, beside which some tools store what is said of them.
        """
        own = self.modules.get(module, {})
        if kind is not Kind.KV_CACHE:
            return own
        if self._below is None:
            self._below = group_below(self.modules, {name.rpartition(".")[0] for name in self.modules} - {""})
        return {**self._below.get(module, {}), **own}

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


def resolve(checkpoint: Checkpoint, registry: Registry) -> Quantization:
    """The quantization of a checkpoint, from its config, a side file, or a plugin that recognises it.

    A name that the config writes is binding: where no method has it, only a plugin that knows it as an alias can
    claim the checkpoint; the method that has it can claim it by that same name, to read its config from a side file
    too. Raises MethodError if its method cannot be had, CheckpointError if its config breaks the schema or names an
    unknown method.
    """
    section = find_section(checkpoint.config)
    if section is not None and not isinstance(section, Mapping):
        raise CheckpointError(str(checkpoint.path), [_not_an_object(section)])
    name = section.get("quant_method") if section is not None else None
    if isinstance(name, str) and name in registry.names:
        method = registry.method(name)
        own = _ask(method, checkpoint)
        if own is not None and own.alias == name:
            return _bind(method, own.config, own.source, checkpoint, registry)
        return _bind(method, section, "config.json", checkpoint, registry)
    claimed = _claim(checkpoint, registry, name)
    if claimed is not None:
        method, claim = claimed
        return _bind(method, claim.config, claim.source, checkpoint, registry)
    if section is None:
        return unquantized(registry, checkpoint.modules)
    raise _unknown(name, checkpoint, registry)


def find_section(config: Mapping[str, Any]) -> object:
    """What a model's config, or a nested config of its text, says of quantization; None for nothing."""
    holders = (config, *(config.get(key) for key in _NESTED))
    sections = (holder.get(key) for holder in holders if isinstance(holder, Mapping) for key in SECTIONS)
    return next((section for section in sections if section not in (None, {})), None)


def _not_an_object(section: object) -> Finding:
    return report(
        "QL105",
        "is not a JSON object",
        where=SECTIONS[0],
        file="config.json",
        found=type(section).__name__,
        remedy="leave it out where nothing is quantized",
    )


def _unknown(name: object, checkpoint: Checkpoint, registry: Registry) -> CheckpointError:
    finding = report(
        "QL104",
        "no installed plugin knows the quantization method",
        where="quantization_config.quant_method",
        file="config.json",
        expected=f"one of {', '.join(registry.names)}",
        found=repr(name),
        remedy="install the plugin of that method, or correct the name",
    )
    return CheckpointError(str(checkpoint.path), [finding])


def _claim(checkpoint: Checkpoint, registry: Registry, name: object) -> tuple[Method, Claim] | None:
    """The method that claims the checkpoint most surely, and its claim; `name` is what the config writes."""
    claims = [
        (method, claim)
        for method in registry.methods()
        if (claim := _ask(method, checkpoint)) is not None and (name is None or claim.alias == name)
    ]
    if not claims:
        return None
    claims.sort(key=lambda pair: -pair[1].specificity)
    (method, best), *others = claims
    if others and others[0][1].specificity == best.specificity:
        raise MethodError(
            f"{method.name} and {others[0][0].name} both claim the checkpoint, and neither more surely",
            method=method.name,
            where=str(checkpoint.path),
            remedy="block one of them with QLOAD_DISABLE",
        )
    return method, best


def _ask(method: Method, checkpoint: Checkpoint) -> Claim | None:
    hook = method.declaration.get("qload_claim")
    claim: Claim | None = ask(hook, checkpoint.config, checkpoint) if hook is not None else None
    return claim


def _bind(
    method: Method, section: Mapping[str, Any] | None, source: str, checkpoint: Checkpoint, registry: Registry
) -> Quantization:
    try:
        config = read_config(method, section or {})
    except ValidationError as error:
        raise CheckpointError(str(checkpoint.path), list(_schema_findings(error, source))) from error
    return Quantization(
        method,
        registry.method(UNQUANTIZED),
        config,
        section or {},
        modules=checkpoint.modules,
        tensors=checkpoint.tensors,
        descriptions=checkpoint.descriptions,
    )


def read_config(method: Method, section: Mapping[str, Any]) -> BaseModel | None:
    """A method's config, or None for a method without one. Raises ValidationError where it breaks the schema."""
    if method.info.config is None:
        return None
    validate = method.info.config.model_validate
    config: BaseModel = call(method.origin, "its config model", validate, section, meant=(ValidationError,))
    return config


def _schema_findings(error: ValidationError, source: str) -> Iterator[Finding]:
    for fault in error.errors(include_url=False):
        place = ".".join(map(str, fault["loc"])) or "the config"
        yield report("QL105", fault["msg"], where=place, file=source, found=repr(fault.get("input"))[:80])
