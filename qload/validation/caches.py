"""Scales of keys and values: whether all attentions have them, under names that something reads."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from qload.examination import Examination
from qload.findings import Finding, report
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.patterns import generalise
from qload.validation.places import find_explained, is_beyond

SCALES = ("k_scale", "v_scale")
_PROJECTIONS = ("k_proj", "v_proj", "qkv_proj")
_MISNAMED = ("kv_scale", "kv_cache_scale")
"""One scale for both, of formats before there was one for each."""
_ANY = frozenset((*SCALES, *_MISNAMED))
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
_INNER = "attn"
"""What some engines call the part of an attention that computes, which no checkpoint's model has."""
_EXPLAINED = ("QL201", "QL202", "QL207", "QL210")


def find_odd_caches(found: Examination) -> Iterator[Finding]:
    """QL207: scales of keys and values that some attentions lack, or that are loaded nowhere."""
    if found.quantization is None or found.quantization.config is None:
        return
    stored = _list_scales(found)
    read = _list_read(found)
    explained = find_explained(found.findings, _EXPLAINED)
    for attention, names in stored.items():
        if attention not in read and _are_scales(names) and explained.isdisjoint((attention, *names)):
            yield _unread(attention, names)
    if stored.keys() <= read:
        yield from _find_lacking(stored, explained, found)


def _list_scales(found: Examination) -> Mapping[str, list[str]]:
    """The scales of keys and values that are stored, by their attentions."""
    scales: dict[str, list[str]] = defaultdict(list)
    for module, leaves in found.checkpoint.modules.items():
        if ".experts." not in module and not _ANY.isdisjoint(leaves):
            attention = _find_attention(module)
            if attention is not None:
                scales[attention] += [leaves[leaf] for leaf in leaves if leaf in _ANY]
    return scales


def _find_attention(module: str) -> str | None:
    """The attention that a module is, or is right below."""
    above, _, last = module.rpartition(".")
    is_below = last in (*_PROJECTIONS, _INNER) and above.rpartition(".")[2] in _ATTENTIONS
    return above if is_below else module if last in _ATTENTIONS else None


def _are_scales(names: Iterable[str]) -> bool:
    """Whether they are those of a cache: a model's own parameter of that name stands without its twin."""
    leaves = {name.rpartition(".")[2] for name in names}
    return leaves.issuperset(SCALES) or not leaves.isdisjoint(_MISNAMED)


def _list_read(found: Examination) -> set[str]:
    """The attentions whose scales are loaded."""
    layers = () if found.outline is None else found.outline.layers
    return {name for name, sample in layers if sample.geometry.kind is Kind.KV_CACHE}


def _find_lacking(having: Iterable[str], explained: frozenset[str], found: Examination) -> Iterator[Finding]:
    """Attentions without scales where others of their place and make have some, and the config leaves out neither."""
    having = set(having)
    if not having:
        return
    makes = {(generalise(name), _list_projections(name, found)) for name in having}
    for name in dict.fromkeys(module.rpartition(".")[0] for module in found.checkpoint.modules):
        if name.rpartition(".")[2] not in _ATTENTIONS or name in having or is_beyond(name, found.checkpoint.config):
            continue
        is_alike = (generalise(name), _list_projections(name, found)) in makes
        if is_alike and name not in explained and _would_be_read(name, found):
            yield _lacking(name, len(having))


def _list_projections(attention: str, found: Examination) -> frozenset[str]:
    names = (*_PROJECTIONS, "q_proj", "o_proj", "kv_b_proj", "kv_a_proj_with_mqa")
    return frozenset(name for name in names if f"{attention}.{name}" in found.checkpoint.modules)


def _would_be_read(attention: str, found: Examination) -> bool:
    """Whether the method would take an attention's scales if they were stored."""
    if found.quantization is None:
        return False
    try:
        asked = ModuleInfo((attention,), Kind.KV_CACHE, (), frozenset(SCALES))
        return found.quantization.treat(asked).scheme is not None
    except ValueError:
        return False


def _unread(attention: str, names: Iterable[str]) -> Finding:
    return report(
        "QL207",
        "scales of keys and values are stored that nothing reads: the cache would be computed with 1.0",
        where=attention,
        expected=f"{' and '.join(SCALES)} under a name that the method reads, and a KV scheme in the config",
        found=", ".join(names),
        remedy="name them as the method does, and put the KV scheme into the config, or leave them out",
    )


def _lacking(attention: str, others: int) -> Finding:
    return report(
        "QL207",
        "has no scales of keys and values, and other attentions have some: its own would be 1.0",
        where=attention,
        expected=" and ".join(SCALES),
        found=f"{others} with scales",
        remedy="calibrate the cache of all layers, or of none",
    )
