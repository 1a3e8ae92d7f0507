"""One module stands for all that are alike: what is told so is what asking about each of them tells."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import samples

from qload import Registry
from qload.examination import open_checkpoint
from qload.numbers import Blurring, find_numbers
from qload.outline import outline
from qload.patterns import Dialect, Patterns
from qload.resolution import resolve

DIGITS = st.text("0123456789", min_size=1, max_size=3)
WORDS = st.sampled_from(["layers", "mlp", "fc1", "fc2", "w1", "experts", "gate", "gate_proj"])


@st.composite
def names(draw: st.DrawFn) -> tuple[str, str]:
    """Two names that are alike when blurred."""
    shape = draw(st.lists(st.one_of(WORDS, st.integers(1, 3)), min_size=1, max_size=6))
    first = ["a", *(each if isinstance(each, str) else draw(number(each)) for each in shape)]
    second = ["a", *(each if isinstance(each, str) else draw(number(each)) for each in shape)]
    return ".".join(first), ".".join(second)


def number(digits: int) -> st.SearchStrategy[str]:
    return st.text("0123456789", min_size=digits, max_size=digits)


ENTRIES = st.one_of(
    st.lists(st.one_of(WORDS, DIGITS), min_size=1, max_size=4).map(".".join),
    st.sampled_from(["layers.1", "1.mlp", "re:.*", ".*", r"layers\.\d+\.mlp", "layers.[0-4]", "layers..*gate", "fc?"]),
    st.sampled_from([r"layers\.(?!1)", "layers.?.mlp", r"a\.\D+", "re:a.layers.1.*", "*.mlp.*", "a.1?.fc1", "[!1]*"]),
)


@given(names(), st.lists(ENTRIES, max_size=3), st.sampled_from(Dialect))
def test_numbers_that_the_config_does_not_write_tell_no_module_from_another(
    pair: tuple[str, str], entries: list[str], dialect: Dialect
) -> None:
    first, second = pair
    blurring = Blurring()
    assert blurring.blur(first) == blurring.blur(second)
    try:
        patterns = Patterns(tuple(entries), dialect, prefixed=True)
    except ValueError:
        return
    if not find_numbers({"ignore": entries}).matter_in(blurring.blur(first)):
        assert patterns.match(and_above(first)) == patterns.match(and_above(second))


def and_above(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def test_names_are_told_apart_by_all_but_their_numbers() -> None:
    blurring = Blurring()
    assert blurring.blur("model.layers.17.fc1") == "model.layers.00.fc1"
    assert blurring.blur("17.fc1") == "17.fc1"
    assert blurring.blur("layers.1") != blurring.blur("layers.10")
    assert blurring.blur("h.0.fc1") != blurring.blur("h.0.fc2")


@pytest.mark.parametrize(
    ("text", "everywhere", "places"),
    [
        ("int4", False, 0),
        ("0.13.0", False, 1),
        ("gptqmodel:7.7.0", False, 0),
        ("model.layers.3.mlp", False, 1),
        (r"re:.*layers\.\d+\..*", False, 0),
        (r"+:.*\.1[0-9]\..*", True, 0),
        (r"re:.*layers\.[0-4]\..*", True, 0),
    ],
)
def test_where_numbers_matter(text: str, everywhere: bool, places: int) -> None:
    found = find_numbers({"ignore": [text]})
    assert (found.everywhere, len(found.places)) == (everywhere, places)


@pytest.mark.parametrize("path", samples(), ids=lambda path: path.name)
def test_asking_about_one_of_those_alike_is_asking_about_each(path: Path, registry: Registry) -> None:
    found = []
    for is_by_place in (True, False):
        quantization = resolve(open_checkpoint(path, registry), registry)
        method = quantization.method
        info = replace(method.info, is_by_place=is_by_place)
        asked = type(method)(method.origin, replace(method._declaration, info=info))
        drawn = outline(open_checkpoint(path, registry), replace(quantization, method=asked))
        found.append(
            (
                [(name, target.geometry, target.treatment.label, target.sources) for name, target in drawn.layers],
                drawn.plain,
                drawn.findings,
            )
        )
    assert found[0] == found[1]
