"""`qload run` on several ranks: what one process says, and one line for whatever goes wrong; no process is left."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from edits import edit_tensors
from samples import DEMO

ALONE = (sys.executable, "-O", "-m", "qload")
JOINED = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "qload")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SECONDS = 300


def run(program: Sequence[str], path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*program, "run", str(path), "--prompt", "The quick", "--max-new-tokens", "8", *options]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)


def said(found: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in found.stderr.splitlines() if line.strip()]


def test_ranks_say_what_one_process_does() -> None:
    """Also without assertions, under -O."""
    alone, *others = (
        run(ALONE, DEMO),
        run(ALONE, DEMO, "--tp", "2"),
        run(JOINED, DEMO),
    )
    assert alone.returncode == 0
    assert alone.stdout.startswith("The quick")
    assert "rank 0" not in alone.stderr
    for found in others:
        assert (found.returncode, found.stdout) == (0, alone.stdout), found.stderr
        ranks = [line.split()[1:4] for line in said(found) if line.startswith("rank ")]
        assert [rank for rank, *_ in ranks] == ["0", "1"]
        assert ranks[0][1:] == ranks[1][1:]


def test_a_number_of_ranks_that_does_not_do_is_one_line() -> None:
    found = run(ALONE, DEMO, "--tp", "3")
    assert found.returncode == 2
    *obstacles, line = said(found)
    (heads,) = [each for each in obstacles if each.startswith("model.layers.{0..1}.self_attn.q_proj (2): ")]
    assert "4 heads of the layer cannot be divided by 3" in heads
    assert all(each.endswith("numbers of ranks that fit: 1, 2, 4") for each in (heads, line))
    assert line.startswith(f"Error: {DEMO}: 3 ranks cannot share the checkpoint")


def test_a_number_of_ranks_that_does_not_do_is_told_before_any_is_started() -> None:
    """Without importing torch, which each of them does."""
    arguments = ["run", str(DEMO), "--prompt", "a", "--tp", "3"]
    program = f"import sys, qload.cli\ntry: qload.cli.main({arguments})\nfinally: print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS)
    assert (found.returncode, found.stdout) == (2, "False\n")
    assert said(found)[-1].startswith(f"Error: {DEMO}: 3 ranks cannot share the checkpoint")


def test_another_number_than_torchruns_is_refused() -> None:
    found = run(JOINED, DEMO, "--tp", "4")
    assert found.returncode != 0
    assert "Error: the axes' sizes do not make up the ranks (expected 2 ranks, found 1 x 1 x 4)" in found.stderr
    assert found.stdout == ""


def test_a_broken_checkpoint_gives_its_findings_once(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    name = "model.layers.0.mlp.up_proj.weight_scale"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name] * float("nan")}))
    found = run(ALONE, folder, "--tp", "2")
    assert found.returncode == 2
    finding, line = said(found)
    assert finding.startswith(f"QL501 error: {name}")
    assert line == f"Error: {folder}: 1 fault in the checkpoint"


@contextmanager
def started(*options: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A command in a group of processes of its own, and the ranks that it has started."""
    command = [*ALONE, "run", str(DEMO), "--prompt", "a", "--max-new-tokens", "400", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, process_group=0, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process, wait_for_ranks(process, 2)
        finally:
            process.kill()


def wait_for_ranks(process: "subprocess.Popen[str]", size: int) -> list[int]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        found = [pid for pid in children(process.pid) if "spawn_main" in command_of(pid)]
        if len(found) == size:
            return sorted(found)
        time.sleep(0.05)
    raise TimeoutError("the ranks were not started")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def check_gone(pids: Sequence[int]) -> None:
    """They may have been starting, and look for who started them only then."""
    end = time.monotonic() + 60
    while any("spawn_main" in command_of(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("delay", [0.0, 6.0])
def test_ctrl_c_ends_all_ranks_without_a_traceback(delay: float) -> None:
    """It comes to every process of the terminal's group, also to those that are only starting."""
    with started("--tp", "2") as (process, ranks):
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert errors.split() == ["Aborted!"]
        check_gone(ranks)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_one_line(rank: int) -> None:
    with started("--tp", "2") as (process, ranks):
        time.sleep(4 * rank)
        os.kill(ranks[rank], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        (line,) = [line for line in errors.splitlines() if line.strip()]
        assert re.fullmatch(r"Error: rank [01] of 2: a rank was killed by SIGKILL.*", line)
        check_gone(ranks)
