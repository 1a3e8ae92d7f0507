"""Meshes of processes that torchrun started: each rank's place in each group, and what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs.meshes import lay_out
from worlds import World

from qload.errors import ParallelError
from qload.torch.parallel import make_mesh, start_mesh

Worlds = Callable[[int], World]
TESTS = Path(__file__).parents[2]


def start(folder: Path, dp: int, pp: int, tp: int) -> list[dict[str, Any]]:
    """What each rank of a job says that torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(dp * pp * tp)]
    script = [str(TESTS / "jobs" / "meshes.py"), str(folder), str(dp), str(pp), str(tp)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *script], env=environment, check=True, timeout=180, capture_output=True)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(dp * pp * tp)]


@pytest.mark.parametrize("sizes", [(2, 1, 2), (1, 2, 2), (2, 2, 2)])
def test_every_rank_has_its_place_in_each_group(tmp_path: Path, sizes: tuple[int, int, int]) -> None:
    ranks = torch.arange(sizes[0] * sizes[1] * sizes[2]).reshape(sizes)
    answers = start(tmp_path, *sizes)
    for rank, answer in enumerate(answers):
        place = [int(each) for each in (ranks == rank).nonzero()[0]]
        for number, axis in enumerate(("dp", "pp", "tp")):
            mates = ranks.movedim(number, -1)[tuple(each for at, each in enumerate(place) if at != number)]
            assert answer["places"][axis] == [place[number], sizes[number], mates.tolist()]
        assert answer["default"] == answer["places"]["tp"]
        assert answer["device"] == "cpu"
        check_refusals(answer, len(answers))


def check_refusals(answer: dict[str, Any], world: int) -> None:
    """Whatever was wrong is said, and left nobody joined; a second start leaves the first as it is."""
    words = {
        "sizes": f"expected {world} ranks, found 3 x 1 x {world // 3}",
        "product": f"expected {world} ranks, found 2 x 1 x 1",
        "nothing": f"expected {world} ranks, found 0 x 1 x {world}",
        "backend": "no such backend joins ranks on cpu (expected gloo or ucc or mpi, found carrier pigeons)",
        "fake": "found fake",
        "of another device": "no such backend joins ranks on cpu (expected gloo or ucc or mpi, found nccl)",
        "axis": "a mesh has no such axis (expected dp or pp or tp, found ep)",
        "device": "cannot be joined on such devices (expected cpu or cuda, found abacus)",
    }
    words |= {} if torch.cuda.is_available() else {"gpu": "no GPU for each rank"}
    for name, expected in words.items():
        text, joined = answer["wrong"][name]
        assert expected in text
        assert not joined
    text, joined = answer["again"]
    assert f"joined already (expected one start of each process, found a gloo group of {world})" in text
    assert joined


def test_ranks_that_are_joined_are_laid_out(worlds: Worlds) -> None:
    for rank, (places, words) in enumerate(worlds(4).run(lay_out)):
        pair, across = [rank // 2 * 2, rank // 2 * 2 + 1], [rank % 2, rank % 2 + 2]
        assert places[:3] == [(rank // 2, 2, across), (0, 1, [rank]), (rank % 2, 2, pair)]
        assert places[3:] == [(rank, 4, [0, 1, 2, 3]), (rank // 2, 2, across)]
        assert words[0].startswith("the axes' sizes do not make up the ranks (expected 4 ranks, found 3 x 1 x 1)")
        assert words[1] == "the mesh has no such axis (expected dp or pp or tp, found ep)"
        assert words[2] == "the mesh has no such axis (expected a mesh of one axis, found tp)"
        assert words[3] == (str(rank) if rank < 2 else f"this rank is not in the mesh (found rank {rank})")


def test_a_process_that_nobody_started_with_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ParallelError, match=r"expected WORLD_SIZE in the environment, found none.*torchrun"):
        start_mesh()
    with pytest.raises(ParallelError, match="the processes are not joined"):
        make_mesh()
