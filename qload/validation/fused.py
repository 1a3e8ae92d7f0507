"""Projections that engines fuse into one layer: how each is quantized, and with how many scales."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from math import prod

from qload.declare import ParameterKind
from qload.examination import Examination
from qload.findings import Finding, report
from qload.hookspecs import Parts
from qload.roles import FUSED
from qload.validation.places import Form, Kin, find_explained, form_of, group_places, list_kin

_CROSS = ("cross", "encoder_attn", "EncDec")
_STORED_AS_ONE = (
    *("qkv_proj", "query_key_value", "Wqkv", "W_pack", "wqkv", "c_attn", "in_proj_qkv", "in_proj_qkvz", "qkv"),
    *("gate_up_proj", "gate_up"),
)
_EXPLAINED = ("QL101", "QL201", "QL202", "QL210", "QL308")


def find_mixed_parts(found: Examination) -> Iterator[Finding]:
    """QL204: parts of a fused layer that are quantized differently. QL306: all parts of one under a single scale."""
    kin = list_kin(found)
    yield from _find_single_scales(kin, found)
    if found.quantization is not None:
        parts = found.quantization.method.info.capabilities.parts
        if parts is not Parts.ANY:
            yield from _find_mixed(kin, found, parts)


def _find_mixed(kin: Iterable[Kin], found: Examination, parts: Parts) -> Iterator[Finding]:
    places = group_places(kin)
    explained = find_explained(found.findings, _EXPLAINED)
    blocks = {each.above for group in places.values() for each in group}
    for block in blocks:
        for group in FUSED:
            there = [each for leaf in group for each in places.get(f"{block}.{leaf}", ())]
            if not any(word in block for word in _CROSS) and _differ(there, found, parts):
                yield from _compare_blocks(there, found, parts, explained)


def _differ(kin: Iterable[Kin], found: Examination, parts: Parts) -> bool:
    """Whether not all are stored in one form."""
    return len({_form(each, found, parts) for each in kin}) > 1


def _form(kin: Kin, found: Examination, parts: Parts) -> Form | bool:
    return kin.is_quantized if parts is Parts.QUANTIZED else form_of(kin, found)


def _compare_blocks(
    kin: Iterable[Kin], found: Examination, parts: Parts, explained: Collection[str]
) -> Iterator[Finding]:
    """One finding for each block whose own parts differ."""
    blocks: dict[str, dict[str, Kin]] = defaultdict(dict)
    for each in kin:
        for name in each.names:
            blocks[name.rpartition(".")[0]][each.leaf] = each
    for block, stored in blocks.items():
        is_explained = any(f"{block}.{leaf}" in explained for leaf in stored)
        if not is_explained and _differ(stored.values(), found, parts):
            yield _mixed(block, stored)


def _mixed(block: str, stored: Mapping[str, Kin]) -> Finding:
    *others, last = stored
    return report(
        "QL204",
        f"{', '.join(others)} and {last} are one layer to engines that fuse them, and are quantized differently",
        where=block,
        expected="one scheme for all of them",
        found="; ".join(f"{leaf} {each.sample.treatment.label}" for leaf, each in stored.items()),
        remedy="quantize them alike, or run it where they are not fused",
    )


def _find_single_scales(kin: Iterable[Kin], found: Examination) -> Iterator[Finding]:
    for each in kin:
        if each.leaf in _STORED_AS_ONE and each.is_quantized:
            for scale in _single_scales(each, found):
                yield from (_single(name, scale) for name in each.names)


def _single_scales(kin: Kin, found: Examination) -> Iterator[str]:
    """The names of stored scales of the weight that have one value for all of it."""
    if found.quantization is None:
        return
    stored = found.checkpoint.modules.get(kin.sample.name, {})
    for spec in found.quantization.declare(kin.sample.treatment, kin.sample.geometry):
        is_weights = spec.kind is ParameterKind.TENSOR_SCALE and spec.name.startswith("weight")
        name = stored.get(spec.stored_as)
        if is_weights and name is not None and prod(found.checkpoint.tensors[name].shape) == 1:
            yield spec.stored_as


def _single(name: str, scale: str) -> Finding:
    return report(
        "QL306",
        "several projections are stored as one, with one scale for all of them",
        where=name,
        expected="a scale for each of the projections, or finer ones",
        found=scale,
        remedy="quantize with scales by channel, block or group, or before fusing",
    )
