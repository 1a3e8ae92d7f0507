"""The benchmarks run: a figure that nobody can measure again is none."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
KEPT = ROOT / "docs" / "benchmarks"


def run(script: str, *options: str | Path) -> str:
    """What a script prints. Fails where it fails."""
    command = [sys.executable, str(BENCHMARKS / script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(code: str) -> Any:
    """What a few lines print as JSON, which import from the benchmarks."""
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_planning_is_measured(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    options = ["--layers", "5", "--experts", "2", "--rounds", "2", "--json", str(kept)]
    run("plan_speed.py", *options)
    found = json.loads(kept.read_text())
    assert found["tensors"] == 3 + 5 * (5 + 4 * 3 + 2 * 3 * 3)
    assert {way: len(runs) for way, runs in found["seconds"].items()} == {
        "parse the headers": 2, "qload.validate": 2, "qload.plan_ranks": 2, "plan": 2,
    }  # fmt: skip
    assert found["machine"]["processor"]


def test_experts_at_once_are_measured(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    options = ["--hidden", "16", "--inner", "16", "--rounds", "2", "--backend", "eager", "--case", "4,2,3"]
    printed = run("grouping.py", *options, "--json", kept)
    found = json.loads(kept.read_text())
    ways = {"one by one", "at once", "one by one, compiled", "at once, compiled"}
    assert {way: len(runs) for way, runs in found["seconds"]["4,2,3"].items()} == dict.fromkeys(ways, 2)
    assert printed.startswith("4,2,3: one by one ")


def test_reading_all_is_measured(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    options = ["--layers", "1", "--hidden", "256", "--rounds", "2", "--json", str(kept)]
    run("deep_speed.py", *options)
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


def test_the_pages_say_what_the_figures_say() -> None:
    run("tables.py", "--check")


def test_whatever_is_kept_is_measured_by_one_command() -> None:
    code = "import json, entries; print(json.dumps({each.kept('cpu'): each.script for each in entries.ENTRIES}))"
    scripts = run_here(code)
    assert all((BENCHMARKS / script).exists() for script in scripts.values())
    assert {path.name.replace("_cuda", "") for path in KEPT.glob("*.json")} <= set(scripts)
    listed = {line.split()[0] for line in run("run.py", "--list").splitlines() if not line.startswith(" ")}
    assert listed == {script.removesuffix(".py") for script in scripts.values()}


def test_whatever_is_kept_has_a_table_and_says_on_which_machine() -> None:
    written = run_here("import json, tables; print(json.dumps(list(tables.WRITERS)))")
    for path in KEPT.glob("*.json"):
        assert path.stem.removesuffix("_cuda") in written, path.name
        kept = json.loads(path.read_text())
        assert path.stem == "mutations" or kept["machine"]["processor"], path.name  # what is counted is no time


def test_every_way_to_load_reads_the_same_bytes_and_is_measured(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    size = ["--layers", "1", "--hidden", "1024", "--rounds", "1"]
    printed = run("loading.py", *size, "--cases", "warm", "warm 0/2", "warm 2", "--json", kept, "--folder", tmp_path)
    found = json.loads(kept.read_text())
    optional = ("fastsafetensors", "runai")
    for case, runs in found["runs"].items():
        assert all(any(peer in way for peer in optional) for way in found["failures"][case]), found["failures"]
        assert "limit: into new memory" in runs
        assert "qload.load" in runs
        for way, (measured,) in runs.items():
            # Of a mapped file no page need be resident after it has been read.
            assert measured["seconds"] > 0, way
    assert found["runs"]["warm"]["qload.load"][0]["phases"]["copy"] > 0
    assert "| qload.load |" in printed


def test_a_rank_is_measured_on_its_share() -> None:
    code = """
import json
from pathlib import Path
from readers import Task, cut
from limits import list_spans
task = Task(Path("x"), size=4, rank=1)
names = {"q_proj.qweight": [16, 64], "o_proj.qweight": [16, 64], "q_proj.g_idx": [128], "o_proj.g_idx": [128]}
names |= {"lm_head.weight": [32, 8], "model.norm.weight": [8]}
print(json.dumps({name: [[s.start, s.stop] for s in cut(name, shape, task)] for name, shape in names.items()}))
"""
    assert run_here(code) == {
        "q_proj.qweight": [[None, None], [16, 32]],
        "o_proj.qweight": [[4, 8]],
        "q_proj.g_idx": [[None, None]],
        "o_proj.g_idx": [[32, 64]],
        "lm_head.weight": [[8, 16]],
        "model.norm.weight": [[None, None]],
    }


def test_the_limit_reads_all_bytes_and_each_rank_its_own(tmp_path: Path) -> None:
    data = bytes(range(256)) * 300
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(data[::-1])
    code = f"""
import json, limits
from pathlib import Path
limits.CHUNK = 10_000
files = [Path({str(tmp_path)!r}) / name for name in "ab"]
whole = bytes(limits.prepare_reading(files)())
halves = [bytes(limits.prepare_reading(files, rank, 2)()) for rank in range(2)]
print(json.dumps([whole.hex(), *(half.hex() for half in halves)]))
"""
    whole, *halves = map(bytes.fromhex, run_here(code))
    middle = len(data) // 2
    assert whole[: 2 * len(data)] == data + data[::-1]
    assert [half[: len(data)] for half in halves] == [
        data[:middle] + data[::-1][:middle],
        data[middle:] + data[::-1][middle:],
    ]


def test_files_are_in_the_page_cache_or_out_of_it() -> None:
    # Not in a folder for temporary files, which may be in memory: there files are always cached.
    path = BENCHMARKS / "standin.py"
    code = f"""
import json, paging
from pathlib import Path
path = Path({str(path)!r})
paging.warm([path])
warm = paging.count_cached(path)
stayed = paging.evict([path])
print(json.dumps([warm, stayed, paging.count_cached(path)]))
"""
    warm, stayed, cached = run_here(code)
    assert warm >= path.stat().st_size
    assert stayed == cached


def test_every_run_is_a_process_of_its_own_whose_failures_are_kept() -> None:
    code = """
import json
from forking import Template
with Template(["platform"]).start() as running:
    one, two = running.run("memory:status", [], count=2)
    ended, = running.run("os:_exit", [])
print(json.dumps([one["error"], two["error"], ended["error"], one["trace"].process != two["trace"].process]))
"""
    one, two, ended, apart = run_here(code)
    assert one.startswith(("AttributeError", "TypeError"))
    assert one == two
    assert ended == "ended with status 0 and no answer"
    assert apart


def test_computing_is_measured(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    small = ["--divide", "16", "--layers", "1", "--depth", "1", "--rounds", "1", "--batches", "1", "2"]
    run("computing.py", *small, "--formats", "int4 g128", "mxfp4", "--models", "int4 g128", "--json", kept)
    found = json.loads(kept.read_text())
    for form in ("int4 g128", "mxfp4"):
        for batches in found["layers"][form].values():
            assert set(batches) == {"1", "2"}
            assert all({"qload", "qload, dequantizing", "dense bf16"} <= set(seconds) for seconds in batches.values())
    assert found["failures"]["mxfp4"]["torch's kernel"] == "torch has none for it"
    assert set(found["paths"]) == {"int4 g128", "mxfp4"}
    states = found["models"]["int4 g128"]
    assert set(states) == {"decode 1", "decode 2", "prompt 512"}
    assert all({"qload", "transformers + compressed-tensors", "dense bf16"} <= set(speed) for speed in states.values())


def test_peers_are_installed_by_an_extra_of_the_benchmarks_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {text.split(">")[0] for text in (*project["dependencies"], *project["optional-dependencies"]["test"])}
    peers = {text.split(">")[0] for text in project["optional-dependencies"]["bench"]}
    # The tests hold formats to the one, and have a kernel of the other.
    assert needed & peers == {"bitsandbytes", "compressed-tensors"}
    named = run_here(
        "import json, entries; print(json.dumps([peer for each in entries.ENTRIES for peer in each.peers]))"
    )
    assert {name.replace("_", "-") for name in named} <= peers
