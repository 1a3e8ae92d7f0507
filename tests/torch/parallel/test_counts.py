"""Numbers that ranks add to."""

from torch import distributed as dist

from qload.torch.parallel import Group, SharedCount, run_ranks


def count(group: Group) -> tuple[int, int]:
    number, other = SharedCount("one"), SharedCount("other")
    number.add(group.rank + 1)
    dist.barrier()
    return number.read(), other.read()


def test_every_rank_reads_what_all_have_added() -> None:
    assert run_ranks(count, 3) == (6, 0)
