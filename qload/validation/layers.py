"""Layers that the config counts, and of which nothing is stored."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from qload.examination import Examination
from qload.findings import Finding, report
from qload.patterns import generalise
from qload.validation.places import count_layers, is_whole, number_layer, text_sections

_UNEVEN = ("block_configs", "layer_sharing", "num_kv_shared_layers", "hybrid_override_pattern", "encoder_layers")
"""Words of a config whose layers are not all stored, or not all of the same modules."""
_SHARED = re.compile(r"shared?_.*layers|layers?_shar")
_PROJECTIONS = (
    *("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"),
    *("w1", "w2", "w3", "wq", "wo", "fc1", "fc2", "c_attn", "c_proj", "c_fc", "query_key_value"),
)
"""What no block does without whose like in another layer has it; keys and values may be those of another layer."""


def find_absent_layers(found: Examination) -> Iterator[Finding]:
    """QL201: layers of the decoder, and projections of their blocks, of which nothing is stored."""
    config = found.checkpoint.config
    counted = count_layers(config)
    if counted is None or not is_whole(found) or _may_be_uneven(config):
        return
    key, count = counted
    layers = _list_layers(found, count)
    if len(layers) != 1:
        return
    ((place, stored),) = layers.items()
    for number in sorted(set(range(count)) - stored.keys()):
        yield _absent(f"{place}.{number}", "nothing of the layer is stored", f"{count} layers, as {key} says")
    yield from _find_absent_projections(stored)


def _may_be_uneven(config: Mapping[str, Any]) -> bool:
    """Whether layers may share what is stored, or be of several kinds that the config tells apart in its own words."""
    for _, section in text_sections(config):
        if section.get("is_encoder_decoder"):
            return True
        if any(section.get(key) and (key in _UNEVEN or _SHARED.search(key)) for key in section):
            return True
    return False


def _list_layers(found: Examination, count: int) -> Mapping[str, dict[int, list[str]]]:
    """The modules of each counted layer, by the list that the layer is in."""
    layers: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in found.checkpoint.modules:
        place = None if ".experts." in name else number_layer(name)
        if place is not None and place[1] < count:
            layers[place[0]][place[1]].append(name)
    return layers


def _find_absent_projections(stored: Mapping[int, Collection[str]]) -> Iterator[Finding]:
    """Blocks that store all that most blocks of their place do, but for one projection."""
    blocks: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for names in stored.values():
        for name in names:
            above, _, last = name.rpartition(".")
            blocks[generalise(above)].setdefault(above, set()).add(last)
    for places in blocks.values():
        makes: dict[frozenset[str], list[str]] = defaultdict(list)
        for block, leaves in places.items():
            makes[frozenset(leaves)].append(block)
        if len(makes) > 1:
            yield from _compare(makes)


def _compare(makes: Mapping[frozenset[str], list[str]]) -> Iterator[Finding]:
    usual = max(makes, key=lambda make: (len(makes[make]), len(make)))
    for make, blocks in makes.items():
        absent = usual - make
        if make < usual and len(absent) == 1 and absent <= set(_PROJECTIONS):
            others = f"as in {len(makes[usual])} other layer{'s' if len(makes[usual]) > 1 else ''}"
            yield from (
                _absent(f"{block}.{next(iter(absent))}", "the module is not stored", others) for block in blocks
            )


def _absent(where: str, message: str, expected: str) -> Finding:
    return report(
        "QL201",
        message,
        where=where,
        expected=expected,
        remedy="the checkpoint is incomplete: download the missing file, or convert it again",
    )
