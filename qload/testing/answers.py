"""The questions that the core asks of every method, whatever its checkpoint, put to one."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from qload.checkpoint import Checkpoint
from qload.declare import ParameterKind, ParameterSpec
from qload.errors import PluginError
from qload.geometry import Kind, single
from qload.hookspecs import ModuleInfo
from qload.layout import Dim
from qload.quantization import Quantization

_KINDS = (Kind.LINEAR, Kind.EMBEDDING, Kind.LM_HEAD, Kind.KV_CACHE)
_CLASSES = ((), ("Linear", "Module"), ("Embedding", "Module"), ("SomeAttention", "Module"))
"""A module's classes are not known from headers, where it may be a norm as well."""


def check_answers(quantization: Quantization) -> Iterator[str]:
    """What is wrong with a method's answers; each fault once."""
    faults = [*_check_schemes(quantization), *_check_cache(quantization), *_check_claim(quantization)]
    return iter(dict.fromkeys([*faults, *_check_rules(quantization)]))


def _check_schemes(quantization: Quantization) -> Iterator[str]:
    """There is a scheme for every module, or none, or a refusal."""
    for kind, classes in product(_KINDS, _CLASSES):
        try:
            quantization.treat(ModuleInfo(("layer",), kind, classes))
        except ValueError:
            continue
        except PluginError as error:
            yield from error.faults


def _check_cache(quantization: Quantization) -> Iterator[str]:
    """An attention has no weight: what is declared for it has no columns, and rows only for scales of its heads."""
    try:
        treatment = quantization.treat(ModuleInfo(("self_attn",), Kind.KV_CACHE, ("SomeAttention", "Module")))
        if treatment.scheme is None:
            return
        specs = quantization.declare(treatment, single(1, 1, kind=Kind.KV_CACHE))
    except (ValueError, PluginError):
        return
    weights = [spec.name for spec in specs if spec.layout.follows(Dim.IN) or _is_weight(spec)]
    if weights:
        yield f"with the capability kv_cache, it declares weights for an attention: {', '.join(weights)}"


def _is_weight(spec: ParameterSpec) -> bool:
    is_scale = spec.kind.is_scale or spec.kind is ParameterKind.ZERO_POINT
    return spec.layout.follows(Dim.OUT) and not is_scale


def _check_claim(quantization: Quantization) -> Iterator[str]:
    """It is asked about every checkpoint that names no method."""
    hook = quantization.method.declaration.get("qload_claim")
    try:
        if hook is not None and hook({}, Checkpoint(Path("none"), {}, {})) is not None:
            yield "qload_claim claims a checkpoint that says nothing"
    except PluginError as error:
        yield from error.faults


def _check_rules(quantization: Quantization) -> Iterator[str]:
    """Its own rules explain themselves, and are looked for in a module of which nothing is stored as in any other."""
    method = quantization.method
    try:
        rules, scheme = method.rules, quantization.treat(ModuleInfo(("layer",))).scheme
        if scheme is not None:
            method.check(scheme, {})
    except ValueError:
        return
    except PluginError as error:
        yield from error.faults
        return
    # What a method finds while it loads, no other hook has to look for.
    if any(not rule.needs_load for rule in rules.values()) != ("qload_check" in method.declaration):
        yield "of qload_rules, which declares rules, and qload_check, which finds them, it has one alone"
    yield from (
        f"{code} says not why it matters, or not what mends it"
        for code, rule in rules.items()
        if not (rule.failure and rule.cure)
    )
