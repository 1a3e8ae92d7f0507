"""Slips of the hand, told from names that differ by as little on purpose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qload.validation.spelling import find_near, is_one_edit

KNOWN = ("q_proj", "k_proj", "down_proj", "gate_proj", "self_attn", "expert", "fc1", "conv1d", "embed_tokens")


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("down_porj", "down_proj"),
        ("dwon_proj", "down_proj"),
        ("self_atn", "self_attn"),
        ("self_attnn", "self_attn"),
        ("embed_tokans", "embed_tokens"),
        ("v_proj", None),
        ("up_proj", None),
        ("experts", None),
        ("fc2", None),
        ("conv2d", None),
        ("gate_up_proj", None),
        ("downproj", None),
        ("vision_tower", None),
    ],
)
def test_a_slip_is_one_in_a_long_part_of_a_word(word: str, near: str | None) -> None:
    assert find_near(word, KNOWN) == near


def edits(word: str) -> set[str]:
    """Norvig's: what one letter left out, changed, added or exchanged with the next makes of a word."""
    letters = "abc"
    splits = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    out = {first + second[1:] for first, second in splits if second}
    swapped = {first + second[1] + second[0] + second[2:] for first, second in splits if len(second) > 1}
    changed = {first + letter + second[1:] for first, second in splits if second for letter in letters}
    return out | swapped | changed | {first + letter + second for first, second in splits for letter in letters}


words = st.text("abc", min_size=1, max_size=5)


@given(words, words)
def test_one_edit_is_what_enumerating_all_of_them_finds(first: str, second: str) -> None:
    assert is_one_edit(first, second) == (first != second and second in edits(first))
