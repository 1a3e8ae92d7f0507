"""How a model's modules are divided over ranks, told by their names and sizes alone, without building the model.

A layer between two others is either one whose outputs go on apart (column), or one that sums what came apart (row);
which of them are neighbours without a collective between them, only whoever builds the model knows, and nothing of
what is stored depends on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qload.configs import PARTS
from qload.declare import ParameterSpec
from qload.errors import ShardError
from qload.geometry import MAX_SIZE, Geometry, Kind, Part, Sharding, column, replicated, row, vocabulary
from qload.sharding import cut_layer, fits

_VOCABULARIES = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings", "embedding")
_QUERIES = ("q_proj", "query", "wq", "q_b_proj", "kv_b_proj")
_KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value", "wk", "wv")
_COLUMNS = (
    *_QUERIES,
    *_KEYS_AND_VALUES,
    *("qkv_proj", "query_key_value", "Wqkv", "gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "w13"),
    *("fc1", "fc_in", "dense_h_to_4h", "g_proj", "input_linear"),
    *("c_attn", "c_fc", "in_proj", "in_proj_qkv", "in_proj_z", "in_proj_qkvz", "qkv"),
    *("q", "k", "v", "wi", "wi_0", "wi_1"),
)
_ROWS = (
    *("o_proj", "out_proj", "wo", "dense", "down_proj", "w2", "fc2", "fc_out", "dense_4h_to_h"),
    *("output_linear", "o", "c_proj", "proj"),
)
_GATED = ("gate_up_proj", "w13")
_QKV = "qkv_proj"
FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wq", "wk", "wv"),
    ("query", "key", "value"),
)
"""The projections of a block that read the same inputs, which engines compute as one layer."""


@dataclass(frozen=True, slots=True)
class Heads:
    """An attention's heads, as a model's config has them; None for what it does not say."""

    queries: int | None = None
    keys_and_values: int | None = None

    def of(self, name: str) -> int | None:
        """The heads of the projection of that name."""
        last = _last(name)
        if last in _QUERIES:
            return self.queries
        return self.keys_and_values if last in _KEYS_AND_VALUES else None


def read_heads(config: Mapping[str, Any]) -> Heads:
    """The heads that a model's config speaks of, or the config nested in it of its text."""
    nested = (config.get(key) for key in PARTS)
    found = next(
        (each for each in (config, *nested) if isinstance(each, Mapping) and "num_attention_heads" in each), {}
    )
    queries = _count(found.get("num_attention_heads"))
    return Heads(queries, _count(found.get("num_key_value_heads")) or queries)


def is_column(name: str) -> bool:
    """Whether a module of that name is one whose outputs go on apart."""
    return _last(name) in _COLUMNS


def is_row(name: str) -> bool:
    """Whether a module of that name is one that sums what came apart."""
    return _last(name) in _ROWS


def make_part(name: str, rows: int, heads: Heads) -> Part:
    """A module's output features, in heads that stay together where it is a projection to them."""
    count = heads.of(name)
    if count is None or rows == 0 or rows % count:
        return Part("", rows)
    return Part("", rows, count, replicable=_last(name) in _KEYS_AND_VALUES)


def split_parts(name: str, geometry: Geometry, heads: Heads) -> Geometry:
    """The layer of that name with the parts that engines divide one by one, where it is fused on disk and plainly so.

    Gates lie before up projections of the same size; queries before keys and values, each in heads of the same size.
    """
    rows, last = geometry.out_features, _last(name)
    if len(geometry.parts) != 1:
        return geometry
    if last in _GATED and rows % 2 == 0:
        return replace(geometry, parts=(Part("gate", rows // 2), Part("up", rows // 2)))
    queries, others = heads.queries, heads.keys_and_values
    if last != _QKV or queries is None or others is None or rows % (queries + 2 * others):
        return geometry
    size = rows // (queries + 2 * others)
    keys, values = (Part(each, others * size, others, replicable=True) for each in ("keys", "values"))
    return replace(geometry, parts=(Part("queries", queries * size, queries), keys, values))


def natural_sharding(name: str, geometry: Geometry) -> Sharding:
    """How the neighbours of the module of that name would have it divided, whether that fits or not.

    It is whole on each rank where nothing is known of its name.
    """
    return next(iter(_list_ways(name, geometry)), replicated)


def choose_sharding(name: str, geometry: Geometry, specs: Sequence[ParameterSpec], size: int) -> Sharding:
    """How the module of that name, which stores `specs`, is divided over `size` ranks.

    What cannot be divided as its neighbours would have it is divided the other way: inputs and outputs are brought
    there. It is whole on each rank where nothing can ever divide it, or nothing is known of its name; where another
    number of ranks could, the answer is a way that does not fit, and cutting by it says which numbers would.
    """
    ways = _list_ways(name, geometry)
    if not has_whole_heads(geometry, size):
        return column
    found = next((sharding for sharding in ways if fits(geometry, sharding, specs, size)), None)
    if found is not None:
        return found
    return ways[0] if _can_be_divided(geometry, ways, specs) else replicated


def settle_sharding(name: str, geometry: Geometry, specs: Sequence[ParameterSpec], size: int) -> Sharding:
    """As `choose_sharding`. Raises ShardError where no way fits, with all numbers of ranks for which one does."""
    sharding = choose_sharding(name, geometry, specs, size)
    try:
        cut_layer(geometry, sharding, specs, name, 0, size)
    except ShardError as error:
        facts = {"where": error.where, "expected": error.expected, "found": error.found}
        raise ShardError(error.what, unit=error.unit, sizes=find_sizes(name, geometry, specs), **facts) from error
    return sharding


def find_sizes(name: str, geometry: Geometry, specs: Sequence[ParameterSpec]) -> tuple[int, ...]:
    """The numbers of ranks up to MAX_SIZE that what `choose_sharding` answers fits."""
    ways = _list_ways(name, geometry)
    sizes = tuple(size for size in range(1, MAX_SIZE + 1) if has_whole_heads(geometry, size))
    if not _can_be_divided(geometry, ways, specs):
        return sizes
    return tuple(size for size in sizes if any(fits(geometry, sharding, specs, size) for sharding in ways))


def _list_ways(name: str, geometry: Geometry) -> tuple[Sharding, ...]:
    """The ways to divide a module, the one that its neighbours would have first; none where nothing is known of it."""
    kind, last = geometry.kind, _last(name)
    if kind is Kind.LM_HEAD or (kind is Kind.EMBEDDING and last in _VOCABULARIES):
        return (vocabulary(1),)
    if kind not in (Kind.LINEAR, Kind.EXPERTS):
        return ()
    return (column, row) if is_column(name) else (row, column) if is_row(name) else ()


def _can_be_divided(geometry: Geometry, ways: Sequence[Sharding], specs: Sequence[ParameterSpec]) -> bool:
    """Whether any number of ranks could have shares of it."""
    sizes = range(2, MAX_SIZE + 1)
    return any(fits(geometry, sharding, specs, size) for sharding in ways for size in sizes)


def has_whole_heads(geometry: Geometry, size: int) -> bool:
    """Whether each rank can have whole heads: without them, no way to divide a projection is of use."""
    return all(
        part.heads is None or part.heads % size == 0 or (part.replicable and size % part.heads == 0)
        for part in geometry.parts
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _count(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
