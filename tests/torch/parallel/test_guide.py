"""What docs/parallel.md shows runs, started as it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

from samples import DEMO

import qload

TEXT = (Path(__file__).parents[3] / "docs" / "parallel.md").read_text()


def test_the_script_runs_under_torchrun(tmp_path: Path) -> None:
    said = run_shown("train.py", tmp_path)
    assert sorted(re.findall(r"rank . of 2: \[.*?\]", said)) == ["rank 0 of 2: [16, 32]", "rank 1 of 2: [16, 32]"]


def test_a_whole_model_generates_under_torchrun(tmp_path: Path) -> None:
    said = run_shown("generate.py", tmp_path, str(DEMO), "The memory of")
    found = {rank: (read, tokens) for rank, read, tokens in re.findall(r"rank (.) of 2: (\d+) bytes, (\[.*?\])", said)}
    (planned,) = qload.plan_ranks(DEMO, [2]).sizes
    assert {rank: int(read) for rank, (read, _) in found.items()} == {
        str(rank): share.read for rank, share in enumerate(planned.ranks)
    }
    assert len({tokens for _, tokens in found.values()}) == 1


def run_shown(file: str, folder: Path, *arguments: str) -> str:
    """What a script that the page shows prints on two ranks."""
    (code,) = re.findall(rf"```python\n# {re.escape(file)}\n(.*?)```", TEXT, re.DOTALL)
    (folder / file).write_text(code)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, file, *arguments], cwd=folder, env=environment, check=True, timeout=120, capture_output=True
    )
    return done.stdout.decode()
