"""Ranks that are processes of this machine: what they return, how they fail, and that none is left."""

import multiprocessing as mp
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from jobs.ranks import describe, lose_another, misbehave, return_early, return_unpicklable

from qload.errors import LayoutError, ParallelError
from qload.torch.parallel import run_ranks

TESTS = Path(__file__).parents[2]


def ranks_left() -> list[str]:
    return [process.name for process in mp.active_children() if process.name.startswith("rank ")]


def test_rank_0_s_result_comes_back() -> None:
    rank, environment, total = run_ranks(describe, 2, torch.tensor([1.0, 2.0]))
    assert rank == 0
    assert environment == {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert torch.equal(total, torch.tensor([3.0, 5.0]))
    assert ranks_left() == []


def test_ranks_need_not_end_together() -> None:
    assert run_ranks(return_early, 2) == 2


def test_an_error_of_ours_comes_back_as_itself() -> None:
    with pytest.raises(LayoutError, match="rank 1 is not well") as caught:
        run_ranks(misbehave, 2, "raise")
    assert caught.value.unit == 7
    assert "on rank 1 of 2:" in caught.value.__notes__[0]
    assert "_raise_own" in caught.value.__notes__[0]
    assert ranks_left() == []


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("kill", "rank 1 of 2: a rank was killed by SIGKILL"),
        ("exit", "rank 1 of 2: a rank left with exit code 0 before it had returned"),
        ("vanish", "rank 1 of 2: a rank left with exit code 0 before it had returned"),
        ("unreadable", "rank 1 of 2: a rank failed .found UnreadableError: unreadable"),
        ("return", "another rank is gone"),
    ],
)
def test_a_rank_that_does_not_stay_ends_the_others(how: str, words: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ParallelError, match=words):
        run_ranks(misbehave, 2, how)
    assert time.monotonic() - begin < 120
    assert ranks_left() == []


def test_one_that_is_gone_is_noticed_while_agreeing() -> None:
    with pytest.raises(ParallelError, match="rank 1 of 2: a rank left with exit code 0") as caught:
        run_ranks(lose_another, 2)
    words = caught.value.failures[0]
    assert words.startswith("LayoutError: my own after ")
    assert int(words.split()[-2]) < 10


def test_what_cannot_be_started_or_handed_over_is_refused() -> None:
    with pytest.raises(ParallelError, match=r"no ranks to start .expected 1 or more, found 0"):
        run_ranks(describe, 0)
    with pytest.raises(ParallelError, match=r"cannot be joined there .expected cpu or cuda, found tpu"):
        run_ranks(describe, 1, device="tpu")
    with pytest.raises(ParallelError, match=r"no GPU for each rank .expected 64 GPUs"):
        run_ranks(describe, 64, device="cuda")
    with pytest.raises(ParallelError, match=r"cannot be handed to other processes.*use a function of a module"):
        run_ranks(lambda group: None, 1)
    with pytest.raises(TypeError, match="pickle"):
        run_ranks(return_unpicklable, 1)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ranks_end_with_who_started_them(way: signal.Signals) -> None:
    """Also one that waits for another in a collective."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        port = server.getsockname()[1]
        code = f"from jobs.ranks import stay\nfrom qload.torch.parallel import run_ranks\nrun_ranks(stay, 2, {port})"
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, cwd=TESTS, stderr=subprocess.DEVNULL) as parent, ExitStack() as connections:
            connections.callback(parent.kill)
            ranks = [connections.enter_context(server.accept()[0]) for _ in range(2)]
            time.sleep(0.5)
            parent.send_signal(way)
            for rank in ranks:
                rank.settimeout(30)
                assert rank.recv(1) == b""
            assert parent.wait(30) == -way
