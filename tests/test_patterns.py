"""One matcher for the dialects of ignore lists."""

import pytest

from qload.patterns import Dialect, Overrides, Patterns, and_above, merge_names

NAME = "model.layers.1.mlp.gate"


@pytest.mark.parametrize(
    ("dialect", "entry", "matches", "misses"),
    [
        (Dialect.EXACT, NAME, NAME, "model.layers.10.mlp.gate"),
        (Dialect.SUFFIX, "mlp.gate", NAME, "model.layers.1.mlp.gate_proj"),
        (Dialect.SUFFIX, "gate", NAME, "model.layers.1.aggregate"),
        (Dialect.SUBSTRING, "layers.1", "model.layers.10.mlp", "model.layers.2.mlp"),
        (Dialect.WILDCARD, "model.layers.1*", "model.layers.10.mlp", "x.model.layers.1.mlp"),
        (Dialect.WILDCARD, "*.gate", NAME, "model.layers.1.mlp.gate_proj"),
        (Dialect.WILDCARD, "lm_head", "lm_head", "model.lm_head"),
        (Dialect.WILDCARD, "*mlp.gate", NAME, "model.layers.1.mlp.gate_proj"),
        (Dialect.WILDCARD, "model.layers.[01].*", NAME, "model.layers.10.mlp.gate"),
        (Dialect.WILDCARD, "mlp.gate", "mlp.gate", NAME),
        (Dialect.REGEX, r"model\.layers\.1\.", NAME, "x.model.layers.1.mlp"),
        (Dialect.EDGE, r"model\.layers\.\d\.mlp", NAME, "model.layers.10.mlp.gate"),
        (Dialect.EDGE, "model.layers.1", NAME, "model.layers.10.mlp.gate"),
        (Dialect.EDGE, "model.layers.", NAME, "model.layers"),
        (Dialect.EDGE, "ate", NAME, "model.layers.1.mlp.gate_proj"),
        (Dialect.EDGE, "[ab].c", "a.c", "x.[ab].d"),
        (Dialect.EDGE, "[ab].c", "x.[ab].c", "x.a.c"),
    ],
)
def test_each_dialect_means_what_it_says(dialect: Dialect, entry: str, matches: str, misses: str) -> None:
    patterns = Patterns((entry,), dialect)
    assert patterns.match([matches])
    assert not patterns.match([misses])


def test_a_prefixed_entry_is_a_regex_beside_plain_ones() -> None:
    patterns = Patterns(("lm_head", "re:.*mlp\\.gate$"), prefixed=True)
    assert patterns.match(["lm_head"])
    assert patterns.match([NAME])
    assert not patterns.match(["model.layers.1.mlp.gate_proj"])
    assert not patterns.match(["model.lm_head"])


def test_any_of_several_names_matches() -> None:
    assert Patterns(("b",)).match(["a", "b"])
    assert not Patterns(()).match(["a"])
    assert not Patterns((), Dialect.WILDCARD).match(["a", ""])


def test_overrides_leave_out_before_the_first_that_matches() -> None:
    overrides = Overrides({"+:.*mlp": 1, r"model\.layers": 2, "-:.*gate_proj$": 3})
    assert overrides.find([NAME]) == 1
    assert overrides.find(["model.layers.0.attn"]) == 2
    assert overrides.find(["x.model.layers.0.attn"]) is None
    assert overrides.leave_out(["x", "model.layers.0.mlp.gate_proj"])
    assert not overrides.leave_out([NAME])


def test_the_names_above_begin_with_the_name_itself() -> None:
    assert list(and_above(["a.b.c", "d"])) == ["a.b.c", "a.b", "a", "d"]


@pytest.mark.parametrize(
    "patterns",
    [
        (("re:(",), Dialect.EXACT, True),
        (("(",), Dialect.REGEX, False),
        (("a)|(?:b",), Dialect.EDGE, False),
        (("(?i)a",), Dialect.EDGE, False),
    ],
)
def test_a_bad_regex_is_refused_when_it_is_read(patterns: tuple[tuple[str, ...], Dialect, bool]) -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        Patterns(*patterns)


@pytest.mark.parametrize(
    ("names", "merged"),
    [
        (["a.0.b"], "a.0.b"),
        (["a.2.b", "a.0.b", "a.1.b"], "a.{0..2}.b"),
        (["a.0.b.3", "a.2.b.3"], "a.{0,2}.b.3"),
        (["a.0.b.3", "a.1.b.4"], "a.{0..1}.b.{3..4}"),
        (["x1.w2"], "x1.w2"),
    ],
)
def test_names_that_differ_in_their_numbers_are_one(names: list[str], merged: str) -> None:
    assert merge_names(names) == merge_names(iter(names)) == merged
