"""Which method a checkpoint was made with: by the name in its config, a side file, or what a plugin recognises."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from qload.calls import ask
from qload.checkpoint import Checkpoint
from qload.checkpoint.folder import CONFIG
from qload.configs import (
    SECTIONS,
    Section,
    describe_faults,
    find_conflicts,
    find_dtype_faults,
    find_sections,
    find_unknown,
    suggest,
)
from qload.configs.unknown import find_unknown_names
from qload.errors import CheckpointError, MethodError
from qload.findings import Finding, report
from qload.hookspecs import Claim
from qload.quantization import Quantization, read_config, unquantized
from qload.registry import UNQUANTIZED, Method, Registry


def resolve(checkpoint: Checkpoint, registry: Registry) -> Quantization:
    """The quantization of a checkpoint, from its config, a side file, or a plugin that recognises it.

    A name that the config writes is binding: where no method has it, only a plugin that knows it as an alias can
    claim the checkpoint; the method that has it can claim it by that same name, to read its config from a side file
    too. Raises MethodError if its method cannot be had, CheckpointError if its config breaks the schema or names an
    unknown method.
    """
    bound = _bind_config(checkpoint, registry)
    dtypes = find_dtype_faults(checkpoint.config) if CONFIG in checkpoint.files and checkpoint.config else ()
    return replace(bound, findings=(*bound.findings, *dtypes))


def resolve_side_file(checkpoint: Checkpoint, file: str, registry: Registry) -> Quantization | None:
    """The quantization that a side file alone speaks of, as a method claims it or as it names one; None for none.

    Raises as `resolve` does.
    """
    section = Section(checkpoint.read_json(file), file)
    claimed = _claim(checkpoint, registry, None)
    if claimed is not None:
        return _bind(*claimed, section, checkpoint, registry, ())
    if not isinstance(section.written, Mapping) or "quant_method" not in section.written:
        return None
    # A name that a method knows as an alias is looked for in config.json.
    return _bind_section(section, (), replace(checkpoint, config={SECTIONS[0]: section.written}), registry)


def _bind_config(checkpoint: Checkpoint, registry: Registry) -> Quantization:
    sections = find_sections(checkpoint.config)
    if sections:
        return _bind_section(sections[0], tuple(sections[1:]), checkpoint, registry)
    claimed = _claim(checkpoint, registry, None) or _find_named(checkpoint, registry)
    if claimed is None:
        return unquantized(registry, checkpoint.modules)
    method, claim = claimed
    section = Section(checkpoint.read_json(claim.source) or claim.config, claim.source)
    return _bind(method, claim, section, checkpoint, registry, ())


def _bind_section(
    section: Section, others: tuple[Section, ...], checkpoint: Checkpoint, registry: Registry
) -> Quantization:
    if not isinstance(section.written, Mapping):
        raise CheckpointError(str(checkpoint.path), [_not_an_object(section)])
    name = section.written.get("quant_method")
    if isinstance(name, str) and name in registry.names:
        method = registry.method(name)
        own = _ask(method, checkpoint)
        if own is None or own.alias != name:
            own = Claim(0, section.written, section.file)
        return _bind(method, own, section, checkpoint, registry, others)
    claimed = _claim(checkpoint, registry, name)
    if claimed is None:
        raise _unknown(name, section, checkpoint, registry)
    method, claim = claimed
    if claim.source != section.file and claim.alias is None:
        # A section that names nobody, and a side file that a method knows: the section is none of its own.
        section = Section(checkpoint.read_json(claim.source) or claim.config, claim.source)
    return _bind(method, claim, section, checkpoint, registry, others)


def _not_an_object(section: Section) -> Finding:
    return report(
        "QL105",
        "is not a JSON object",
        where=section.name,
        file=section.file,
        found=type(section.written).__name__,
        remedy="leave it out where nothing is quantized",
        pointer=section.path,
    )


def _unknown(name: object, section: Section, checkpoint: Checkpoint, registry: Registry) -> CheckpointError:
    finding = report(
        "QL104",
        "no installed plugin knows the quantization method",
        where=".".join(filter(None, (section.name, "quant_method"))),
        file=section.file,
        expected=f"one of {', '.join(registry.names)}",
        found=repr(name)[:80],
        remedy=suggest(str(name), registry.names) or "install the plugin of that method, or correct the name",
        pointer=section.point(("quant_method",)),
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


def _find_named(checkpoint: Checkpoint, registry: Registry) -> tuple[Method, Claim] | None:
    """The method that one of its side files names."""
    for method in registry.methods():
        for file in method.info.side_files:
            written = checkpoint.read_json(file)
            if written is not None and written.get("quant_method") == method.name:
                return method, Claim(0, written, file)
    return None


def _ask(method: Method, checkpoint: Checkpoint) -> Claim | None:
    hook = method.declaration.get("qload_claim")
    claim: Claim | None = ask(hook, checkpoint.config, checkpoint) if hook is not None else None
    return claim


def _bind(
    method: Method,
    claim: Claim,
    section: Section,
    checkpoint: Checkpoint,
    registry: Registry,
    others: tuple[Section, ...],
) -> Quantization:
    try:
        config = read_config(method, claim.config or {})
    except ValidationError as error:
        model = method.info.config or BaseModel
        raise CheckpointError(str(checkpoint.path), list(describe_faults(error, section, model))) from error
    findings: list[Finding] = list(_find_misplaced(method, claim, section, checkpoint))
    if config is not None and section.written is not None:
        findings += _find_unknown(config, claim, section)
        findings += _find_conflicts(method, config, claim, section, checkpoint, others, registry)
    return Quantization(
        method,
        registry.method(UNQUANTIZED),
        config,
        claim.config or {},
        findings=tuple(findings),
        modules=checkpoint.modules,
        tensors=checkpoint.tensors,
        descriptions=checkpoint.descriptions,
    )


def _find_misplaced(method: Method, claim: Claim, section: Section, checkpoint: Checkpoint) -> Iterator[Finding]:
    """A config where only some loaders look for it; one that was asked for by its own name is not misplaced."""
    remedy = f"copy it to the top of {CONFIG}, as {SECTIONS[0]}"
    if section.is_nested:
        message = "the quantization config is nested, and loaders that look at the top alone load weights as plain ones"
        yield report("QL102", message, where=section.name, file=section.file, remedy=remedy, pointer=section.path)
    elif section.file != CONFIG and not claim.is_native and CONFIG in checkpoint.files:
        message = f"the quantization config is in a side file alone, and loaders that read {CONFIG} alone do not see it"
        yield report("QL102", message, where=method.name, file=section.file, remedy=remedy)


def _find_unknown(config: BaseModel, claim: Claim, section: Section) -> Iterator[Finding]:
    if claim.fields and claim.alias is not None:
        yield from find_unknown_names(section, claim.fields)
    else:
        yield from find_unknown(config, section)


def _find_conflicts(
    method: Method,
    config: BaseModel,
    claim: Claim,
    section: Section,
    checkpoint: Checkpoint,
    others: tuple[Section, ...],
    registry: Registry,
) -> Iterator[Finding]:
    """The other sections of config.json, and the side files, held against the one that counts."""
    given: list[tuple[Section, Mapping[str, Any] | None]]
    if claim.beside:
        given = [(Section(checkpoint.read_json(file) or {}, file), whole) for file, whole in claim.beside.items()]
    else:
        files = [Section(checkpoint.read_json(file), file) for file in method.info.side_files if file != section.file]
        given = [(each, _translate(method, each, section, checkpoint)) for each in (*others, *files)]
    for beside, whole in given:
        yield from _find_other_name(section, beside, registry)
        if whole is None:
            continue
        try:
            other = read_config(method, whole)
        except ValidationError:
            continue
        if other is not None:
            yield from find_conflicts(config, section, other, beside, names=section.is_nested == beside.is_nested)


def _find_other_name(section: Section, beside: Section, registry: Registry) -> Iterator[Finding]:
    """A source that names another method; a name that no method has may be one that a tool gives its own config."""
    sections = [each for each in (section, beside) if isinstance(each.written, Mapping)]
    names = [name for each in sections if (name := each.written.get("quant_method")) in registry.names]
    if len(names) == 2 and names[0] != names[1]:
        yield report(
            "QL103",
            "two sources of the quantization config name different methods",
            where="quant_method",
            file=beside.file,
            expected=f"{names[0]!r}, as {section.file} says",
            found=repr(names[1]),
            remedy="correct the one that is wrong, or delete what is stale",
            pointer=beside.point(("quant_method",)),
        )


def _translate(method: Method, other: Section, section: Section, checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """What another source says, in the words of the method's config; None where it is none of the method's."""
    names = [each.written.get("quant_method") for each in (section, other) if isinstance(each.written, Mapping)]
    if len(names) < 2 or (None not in names and names[0] != names[1]):
        return None
    alone = replace(checkpoint, config={SECTIONS[0]: {"quant_method": names[0], **other.written}}, files=())
    claim = _ask(method, alone)
    whole: Mapping[str, Any] = other.written if claim is None or claim.alias is None else claim.config or {}
    return whole
