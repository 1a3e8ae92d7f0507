"""What docs/parallel.md shows runs, started as it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

TEXT = (Path(__file__).parents[3] / "docs" / "parallel.md").read_text()


def test_the_script_runs_under_torchrun(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n# train\.py\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "train.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120, capture_output=True)
    assert sorted(re.findall(rb"rank . of 2: \[.*?\]", done.stdout)) == [
        b"rank 0 of 2: [16, 32]",
        b"rank 1 of 2: [16, 32]",
    ]
