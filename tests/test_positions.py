"""Positions in JSON are those of the values that json.loads finds by the same keys."""

import json
import time
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qload.positions import Lines, Pointer, Position, find_nearest, find_spans

TEXTS = st.text() | st.sampled_from(['"', "\\", "}", "]", "a\nb", "\u2028", "\U0001f600", '\\"]', ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
INDENTS = st.sampled_from([None, 0, 1, 2, "\t"])


def all_pointers(value: Any, above: Pointer = ()) -> Iterator[tuple[Pointer, Any]]:
    yield above, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from all_pointers(inner, (*above, key))


@given(VALUES, INDENTS, st.booleans())
def test_the_text_at_each_pointer_is_the_value_there(value: Any, indent: str | int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    expected = dict(all_pointers(value))
    spans = find_spans(text, expected)
    assert spans.keys() == expected.keys()
    for pointer, span in spans.items():
        assert json.loads(text[span.start : span.end]) == expected[pointer]
        if span.key is not None:
            assert json.loads(text[slice(*span.key)]) == pointer[-1]
        assert (span.key is not None) == bool(pointer and isinstance(pointer[-1], str))


@given(VALUES, INDENTS, st.data())
def test_one_pointer_alone_is_found_where_all_are(value: Any, indent: str | int | None, data: st.DataObject) -> None:
    text = json.dumps(value, indent=indent)
    pointers = [pointer for pointer, _ in all_pointers(value)]
    pointer = data.draw(st.sampled_from(pointers))
    assert find_spans(text, [pointer])[pointer] == find_spans(text, pointers)[pointer]


@given(VALUES, INDENTS, st.data())
def test_lines_and_columns_lead_back_to_the_same_characters(
    value: Any, indent: str | int | None, data: st.DataObject
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    pointer = data.draw(st.sampled_from([pointer for pointer, _ in all_pointers(value)]))
    span = find_spans(text, [pointer])[pointer]
    position = Lines(text).place(span.start, span.end)
    line = Lines(text).read(position.line)
    assert line == text.split("\n")[position.line - 1].removesuffix("\r")
    shown = line[position.column - 1 : position.column - 1 + position.length]
    assert text[span.start : span.end].startswith(shown)
    assert len(shown) == position.length


def test_of_a_repeated_key_the_last_counts_as_for_json() -> None:
    text = '{"a": {"b": 1, "c": 2}, "a": {"b": 3}}'
    spans = find_spans(text, [("a", "b"), ("a", "c")])
    assert text[spans["a", "b"].start] == "3"
    assert ("a", "c") not in spans


def test_what_is_not_there_is_pointed_at_by_what_is_above_it() -> None:
    text = '{\n  "outer": {\n    "list": [1]\n  }\n}'
    spans = find_spans(text, [("outer", "list", 7), ("other",)])
    nearest = find_nearest(spans, ("outer", "list", 7))
    assert nearest is not None
    assert Lines(text).point(nearest) == Position(3, 5, len('"list"'))
    assert find_nearest(spans, ("other",)) is None


def test_a_large_file_takes_time_in_proportion_to_its_size() -> None:
    def measure(count: int) -> float:
        index = {"weight_map": {f"model.layers.{number}.weight": "model-00001.safetensors" for number in range(count)}}
        text = json.dumps(index, indent=2)
        started = time.process_time()
        find_spans(text, [("weight_map", f"model.layers.{number}.weight") for number in range(0, count, 50)])
        return time.process_time() - started

    measure(1000)
    small, large = min(measure(10_000) for _ in range(3)), min(measure(80_000) for _ in range(2))
    assert large < 24 * small


@given(VALUES, st.integers(0, 100))
def test_a_text_that_breaks_off_gives_what_stands_before_that(value: Any, percent: int) -> None:
    text = json.dumps(value)
    whole = find_spans(text, [pointer for pointer, _ in all_pointers(value)])
    cut = len(text) * percent // 100
    for pointer, span in find_spans(text[:cut], whole).items():
        assert span.start == whole[pointer].start
