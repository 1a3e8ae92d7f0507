"""The hook of pre-commit and the action of GitHub do what they say, as far as this machine can tell."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from samples import DEMO

from qload.cli import cli

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS: dict[str, dict[str, Any]] = {step.get("name", step.get("uses")): step for step in ACTION["runs"]["steps"]}
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model/config.json",
        "a/b/model-00001-of-00002.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "quantize_config.json",
        "quant_config.json",
        "hf_quant_config.json",
        "quanto_qmap.json",
        "model-Q4_K_M.gguf",
    ],
)
def test_the_hook_is_for_the_files_of_a_checkpoint(name: str) -> None:
    assert re.search(HOOK["files"], name)


@pytest.mark.parametrize(
    "name",
    ["tokenizer_config.json", "generation_config.json", "tsconfig.json", "tokenizer.json", "a/README.md", "quant.py"],
)
def test_the_hook_is_for_no_others(name: str) -> None:
    assert re.search(HOOK["files"], name) is None


def test_the_hook_calls_a_command_that_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    program, *arguments = HOOK["entry"].split()
    assert program in scripts
    files = [DEMO / "config.json", DEMO / "model.safetensors"]
    result = CliRunner().invoke(cli, [*arguments, *map(str, files)])
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) == 1
    assert (HOOK["id"], HOOK["language"]) == ("qload-validate", "python")


def test_the_action_has_what_it_names() -> None:
    text = (ROOT / "action.yml").read_text()
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == ACTION["inputs"].keys()
    ids = {step["id"]: step for step in ACTION["runs"]["steps"] if "id" in step}
    for step, output in re.findall(r"steps\.(\w+)\.outputs\.(\w+)", text):
        assert f'echo "{output}=' in ids[step]["run"]
    for step in ACTION["runs"]["steps"]:
        assert ("run" in step) != ("uses" in step)
        assert "run" not in step or step["shell"] == "bash"


def test_nothing_that_somebody_gives_is_part_of_a_script() -> None:
    """Expressions are put into scripts as they are: what a branch is called would be run."""
    assert [step["run"] for step in ACTION["runs"]["steps"] if "${{" in step.get("run", "")] == []


def run_step(name: str, folder: Path, **environment: str) -> tuple[int, dict[str, str]]:
    """Run a step as GitHub's runner does; its exit status, and its outputs."""
    outputs = folder / "outputs"
    outputs.write_text("")
    more = {"RUNNER_TEMP": str(folder), "GITHUB_OUTPUT": str(outputs), **environment}
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]]
    status = subprocess.run(shell, env={**os.environ, **more}, cwd=folder, check=False).returncode
    return status, dict(line.split("=", 1) for line in outputs.read_text().splitlines())


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_action_validates_each_path_and_keeps_the_status(status: int, tmp_path: Path) -> None:
    fake = f'printf "%s\\n" "$@" > seen\necho "{{}}" > "$RUNNER_TEMP/qload.sarif"\nexit {status}'
    write_program(tmp_path / "qload" / "bin" / "qload", fake)
    paths = "models/a b\n\n  \nmodels/$(touch pwned)\n"
    given = {"CHECKPOINTS": paths, "ARGUMENTS": "--tp 2,4  --probe", "FAIL_ON": "error"}
    sarif = str(tmp_path / "qload.sarif")
    assert run_step("Validate", tmp_path, **given) == (0, {"status": str(status), "sarif": sarif})
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen == [
        *("validate", "--tp", "2,4", "--probe", "--fail-on", "error", "--format", "sarif", "--output", sarif),
        *("--", "models/a b", "models/$(touch pwned)"),
    ]
    assert not (tmp_path / "pwned").exists()


def test_the_action_uploads_nothing_that_was_not_written_now(tmp_path: Path) -> None:
    (tmp_path / "qload.sarif").write_text("of an earlier step")
    write_program(tmp_path / "qload" / "bin" / "qload", "exit 2")
    given = {"CHECKPOINTS": ".", "ARGUMENTS": "", "FAIL_ON": "warning"}
    assert run_step("Validate", tmp_path, **given) == (0, {"status": "2"})


def test_the_action_calls_the_command_as_it_is(tmp_path: Path) -> None:
    real = f'exec "{sys.executable}" -m qload "$@"'
    write_program(tmp_path / "qload" / "bin" / "qload", real)
    given = {"CHECKPOINTS": f"{DEMO}\nnowhere", "ARGUMENTS": "", "FAIL_ON": "warning"}
    status, outputs = run_step("Validate", tmp_path, **given)
    assert (status, outputs["status"]) == (0, "2")
    assert '"version": "2.1.0"' in Path(outputs["sarif"]).read_text()


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_action_fails_with_the_status(status: int, tmp_path: Path) -> None:
    assert run_step("Settle", tmp_path, STATUS=str(status))[0] == status


def test_the_action_installs_what_it_lies_in_without_what_it_does_not_need(tmp_path: Path) -> None:
    inner = f'if [ "$1" = - ]; then exec "{sys.executable}" "$@"; fi\necho "$@" >> "$RUNNER_TEMP/seen"'
    write_program(tmp_path / "inner", inner)
    write_program(tmp_path / "programs" / "python", 'mkdir -p "$3/bin"; cp "$RUNNER_TEMP/inner" "$3/bin/python"')
    path = f"{tmp_path / 'programs'}:{os.environ['PATH']}"
    assert run_step("Install", tmp_path, SOURCE=str(ROOT), PATH=path)[0] == 0
    first, last = (tmp_path / "seen").read_text().splitlines()
    assert first.startswith("-m pip install --quiet --requirement ")
    assert last == f"-m pip install --quiet --no-deps {ROOT}"
    required = Path(first.split()[-1]).read_text().splitlines()
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [each for each in stated if each not in required] == [
        each for each in stated if re.match(r"(torch|transformers)\W", each)
    ]


def test_validating_needs_none_of_what_the_action_leaves_out() -> None:
    code = f"""
import sys
sys.modules.update(torch=None, transformers=None)
from qload.cli import main
main(["validate", {str(DEMO)!r}, "--format", "sarif", "--tp", "2"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
