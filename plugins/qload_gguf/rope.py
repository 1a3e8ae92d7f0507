"""Rotary embeddings: transformers' parameters, from metadata and the tables that a file stores as tensors.

Source: llama.cpp's converters (`rope.scaling` keys, `rope_freqs`, `rope_factors_long` and `rope_factors_short`), and
transformers' `modeling_rope_utils`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qload_gguf.facts import Facts

FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TABLES = (FREQUENCIES, LONG, SHORT)

_LLAMA3_BANDS = (1.0, 4.0)
"""The least and greatest of llama3's frequency factors, which no model changes."""
_LLAMA3_LENGTHS = (8192, 4096, 2048, 16384, 32768, 65536, 131072)

Table = Sequence[float]


def read_rope(facts: Facts, dimensions: int, tables: Mapping[str, Table]) -> dict[str, Any]:
    """The parameters of rotary embeddings that rotate so many features."""
    theta = facts.number("rope.freq_base", 10000.0)
    kind = facts.find("rope.scaling.type") or ("linear" if facts.find("rope.scale_linear") else "none")
    length = facts.find("rope.scaling.original_context_length")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if SHORT in tables or LONG in tables:
        return parameters | _read_longrope(facts, length, tables)
    if kind == "linear":
        factor = facts.number("rope.scaling.factor", facts.number("rope.scale_linear", 1.0))
        parameters |= {"rope_type": "linear", "factor": factor} if factor != 1.0 else {}
    elif kind == "yarn":
        parameters |= _read_yarn(facts, length)
    elif kind != "none" or facts.number("rope.scaling.factor", 1.0) not in (0.0, 1.0):
        raise facts.refuse("the scaling is not known", "rope.scaling.type", code="QL104", found=repr(kind))
    if FREQUENCIES in tables and any(value != 1.0 for value in tables[FREQUENCIES]):
        if kind != "none":
            raise facts.refuse("there are two scalings of rotary embeddings", "rope.scaling.type", code="QL104")
        return parameters | _recognise_llama3(facts, tables[FREQUENCIES], theta, dimensions)
    return parameters


def _read_yarn(facts: Facts, length: Any) -> dict[str, Any]:
    if facts.number("rope.scaling.yarn_ext_factor", 1.0) != 1.0 or facts.find("rope.scaling.yarn_log_multiplier"):
        raise facts.refuse("transformers has no such extrapolation", "rope.scaling.type", code="QL104")
    if not length:
        raise facts.refuse("the metadata lacks a key", "rope.scaling.original_context_length")
    optional = {"attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
    found = {name: facts.find(f"rope.scaling.{key}") for name, key in optional.items()}
    return {
        "rope_type": "yarn",
        "factor": facts.number("rope.scaling.factor", 1.0),
        "original_max_position_embeddings": length,
        **{name: value for name, value in found.items() if value is not None},
    }


def _read_longrope(facts: Facts, length: Any, tables: Mapping[str, Table]) -> dict[str, Any]:
    if not tables.keys() >= {SHORT, LONG} or not length:
        raise facts.refuse("a part of the scaling is not stored", "rope.scaling.original_context_length")
    parameters = {
        "rope_type": "longrope",
        "short_factor": list(tables[SHORT]),
        "long_factor": list(tables[LONG]),
        "original_max_position_embeddings": length,
    }
    factor = facts.find("rope.scaling.attn_factor")
    return parameters if factor is None else {**parameters, "attention_factor": factor}


def _recognise_llama3(facts: Facts, table: Table, theta: float, dimensions: int) -> dict[str, Any]:
    """The settings from which llama.cpp computed the stored table, which is all that it keeps of them."""
    factor, (low, high) = max(table), _LLAMA3_BANDS
    for length in _LLAMA3_LENGTHS:
        made = [_llama3_factor(theta ** (-2 * i / dimensions), factor, length) for i in range(dimensions // 2)]
        if len(made) == len(table) and all(
            math.isclose(one, other, rel_tol=1e-4) for one, other in zip(made, table, strict=True)
        ):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    raise facts.refuse(f"{FREQUENCIES} is no table of a scaling that transformers has", code="QL104")


def _llama3_factor(frequency: float, factor: float, length: int) -> float:
    low, high = _LLAMA3_BANDS
    turns = length * frequency / (2 * math.pi)
    if turns > high:
        return 1.0
    if turns < low:
        return factor
    smooth = (turns - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)
