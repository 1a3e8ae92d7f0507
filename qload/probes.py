"""What a method refuses of a config that stands alone: it is asked of modules as a model of that size would have."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qload.configs import PARTS, Section
from qload.errors import UntoldError
from qload.findings import Finding, refusals
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.quantization import Quantization

_PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "mlp.experts.0.gate_proj",
    "mlp.experts.0.up_proj",
    "mlp.experts.0.down_proj",
    "mlp.shared_expert.down_proj",
)
_MOST_LAYERS = 1024
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
"""The whole name of a module: words with points between them."""


def find_refusals(quantization: Quantization, config: Mapping[str, Any], section: Section) -> Iterator[Finding]:
    """A finding for each reason for which the method refuses modules.

    These are the layers that most models have, as many as the config says, and whatever the section names.
    """
    reasons: dict[str, str] = {}
    for module in _list_modules(config, section):
        try:
            quantization.treat(module)
        except UntoldError:
            continue
        except ValueError as error:
            reasons[module.name] = str(error)
    yield from (replace(each, file=section.file, pointer=section.path) for each in refusals(reasons))


def _list_modules(config: Mapping[str, Any], section: Section) -> Iterator[ModuleInfo]:
    for layer in range(_count_layers(config)):
        yield from (ModuleInfo((f"model.layers.{layer}.{name}",)) for name in _PROJECTIONS)
        yield ModuleInfo((f"model.layers.{layer}.self_attn",), Kind.KV_CACHE, ("Attention",))
    yield ModuleInfo(("lm_head",), Kind.LM_HEAD)
    yield ModuleInfo(("model.embed_tokens",), Kind.EMBEDDING, ("Embedding",))
    yield from (ModuleInfo((name,)) for name in sorted(set(_find_names(section.written))))


def _count_layers(config: Mapping[str, Any]) -> int:
    holders = (config, *(config.get(part) for part in PARTS))
    counts = [holder.get("num_hidden_layers") for holder in holders if isinstance(holder, Mapping)]
    return next((min(count, _MOST_LAYERS) for count in counts if type(count) is int and count > 0), 1)


def _find_names(written: Any) -> Iterator[str]:
    """What the config writes that can be the name of a linear module: keys and entries of lists."""
    if isinstance(written, Mapping):
        yield from _choose(written)
        for value in written.values():
            yield from _find_names(value)
    elif isinstance(written, Sequence) and not isinstance(written, str):
        yield from _choose(written)
        for value in written:
            yield from () if isinstance(value, str) else _find_names(value)


def _choose(entries: Iterable[Any]) -> Iterator[str]:
    return (entry for entry in entries if isinstance(entry, str) and _NAME.fullmatch(entry))
