"""Agreement on real ranks: one that fails fails all, with its own words; none is hurried."""

from collections.abc import Callable

import pytest
from jobs.ranks import come_late, come_this_far
from worlds import World

from qload.errors import LayoutError, ParallelError
from qload.torch.parallel import Group, agree, agreeing

Worlds = Callable[[int], World]


def test_ranks_that_all_came_go_on(worlds: Worlds) -> None:
    assert worlds(4).run(come_this_far, {}) == ["agreed"] * 4


def test_a_failure_of_one_is_everybody_s(worlds: Worlds) -> None:
    told = "[(2, 'LayoutError: no room')] rank {} of 4: another rank failed (found rank 2: LayoutError: no room)"
    expected = [told.format(rank) for rank in range(4)]
    expected[2] = "own: no room"
    assert worlds(4).run(come_this_far, {2: "no room"}) == expected


def test_failures_of_several_are_told_apart(worlds: Worlds) -> None:
    answers = worlds(4).run(come_this_far, {1: "ä" * 5000, 3: "lost"})
    assert answers[1::2] == ["own: " + "ä" * 5000, "own: lost"]
    for answer in answers[::2]:
        assert answer.startswith("[(1, 'LayoutError: ä")
        assert "(3, 'LayoutError: lost')] rank " in answer
        assert "2 of the other ranks failed" in answer


def test_a_slow_rank_is_waited_for_past_the_group_s_own_limit(worlds: Worlds) -> None:
    assert worlds(2).run(come_late)[0] > 2


def test_one_rank_agrees_with_itself() -> None:
    agree(Group())
    with pytest.raises(LayoutError, match="mine"), agreeing(Group()):
        raise LayoutError("mine")


def test_ranks_without_a_group_cannot_agree() -> None:
    with pytest.raises(ParallelError, match="rank 1 of 2: the ranks have no process group"):
        agree(Group(1, 2))
