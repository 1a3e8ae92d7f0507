"""The benchmarks run: a figure that nobody can measure again is none."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_planning_is_measured(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    options = ["--layers", "5", "--experts", "2", "--rounds", "2", "--json", str(kept)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "plan_speed.py"), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text())
    assert found["tensors"] == 3 + 5 * (5 + 4 * 3 + 2 * 3 * 3)
    assert {way: len(runs) for way, runs in found["seconds"].items()} == {
        "parse the headers": 2, "qload.validate": 2, "qload.plan_ranks": 2, "plan": 2,
    }  # fmt: skip
    assert found["machine"]["processor"]


def test_reading_all_is_measured(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    options = ["--layers", "1", "--hidden", "256", "--rounds", "2", "--json", str(kept)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "deep_speed.py"), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text())
    assert {way: len(runs) for way, runs in found["seconds"].items()} == {
        "read": 2, "sha256": 2, "qload.validate(deep=True)": 2, "qload.validate(deep=True), with checksums": 2,
    }  # fmt: skip
    assert found["nbytes"] > 0


def test_each_part_of_a_load_is_measured(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    options = ["--model", "dense", "--layers", "1", "--rounds", "1", "--data", "--json", str(kept)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "load_parts.py"), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text())
    assert found["tensors"] == {"dense": 3 + 2 + 7 * 3}
    assert {"import qload", "model", "names", "layers", "plan", "copy", "finish"} <= found["seconds"]["dense"].keys()
    assert all(len(runs) == 1 for runs in found["seconds"]["dense"].values())
