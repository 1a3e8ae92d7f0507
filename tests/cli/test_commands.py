"""The commands, as their users meet them: output, exit status, and never a traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from edits import WEIGHTS, edit_tensors
from samples import DEMO, samples
from torch import Tensor

import qload
from qload.cli import cli
from qload.cli.shared import describe_bytes, describe_count

SCALE = "model.layers.{}.mlp.down_proj.weight_scale"


def drop_scales(folder: Path, *layers: int) -> None:
    def change(stored: dict[str, Tensor]) -> None:
        for layer in layers:
            del stored[SCALE.format(layer)]

    edit_tensors(folder, change)


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_help_names_every_command() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert all(name in result.output for name in ("methods", "run", "validate"))
    for name in ("methods", "run", "validate"):
        assert call(name, "-h").exit_code == 0


def test_the_version_is_the_distributions() -> None:
    assert "0.1.0" in call("--version").output


def test_a_clean_checkpoint() -> None:
    result = call("validate", DEMO)
    assert result.exit_code == 0
    assert result.output == f"{DEMO}: nothing is wrong (compressed-tensors; 63 tensors, 1.66 MB)\n"


def test_findings_one_line_each_and_repeats_together(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    drop_scales(folder, 0, 1)
    result = call("validate", folder)
    assert result.exit_code == 1
    first, verdict = result.output.splitlines()
    assert first.startswith("QL201 error: " + SCALE.format("{0..1}") + " (2): the group scale is not stored")
    assert "2 errors" in verdict


def test_findings_as_json(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    drop_scales(folder, 0)
    result = call("validate", folder, "--format", "json")
    assert result.exit_code == 1
    report = json.loads(result.output)
    (finding,) = report["findings"]
    assert (finding["code"], finding["where"], finding["severity"]) == ("QL201", SCALE.format(0), "error")


def test_what_cannot_be_checked_is_2() -> None:
    result = call("validate", "nowhere")
    assert result.exit_code == 2
    assert result.output.startswith("Error: nowhere: there is no such folder")


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 100, b"{}"])
def test_no_bad_file_gives_a_traceback(broken: Callable[[str], Path], content: bytes) -> None:
    folder = broken(DEMO.name)
    for name in (WEIGHTS, "config.json"):
        (folder / name).write_bytes(content)
        for command in (["validate"], ["run", "--prompt", "x"]):
            result = call(command[0], folder, *command[1:])
            assert result.exit_code in (1, 2)
            assert "Traceback" not in result.output


def test_methods_lists_what_they_can_do_and_where_they_come_from() -> None:
    result = call("methods")
    assert result.exit_code == 0
    for name in qload.Registry.discover().names:
        assert name in result.output
    assert "qload-torch 0.1.0" in result.output
    rows = {row["method"]: row for row in json.loads(call("methods", "--format", "json").output)}
    assert rows["compressed-tensors"]["capabilities"]["embedding"] is True
    assert rows["awq"]["status"] == "ready"


def test_methods_shows_blocked_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLOAD_DISABLE", "awq")
    result = call("methods")
    assert "blocked" in result.output
    rows = {row["method"]: row for row in json.loads(call("methods", "--format", "json").output)}
    assert rows["awq"]["capabilities"] is None


def run(*more: object) -> Result:
    return call("run", DEMO, "--prompt", "The memory", "--max-new-tokens", 5, *more)


def test_run_goes_on_from_the_prompt_and_says_what_was_loaded() -> None:
    result = run()
    assert result.exit_code == 0
    assert result.stdout.startswith("The memory")
    assert "14 layers compressed-tensors int4 group 128 asymmetric" in result.stderr
    assert "1.66 MB on cpu, 49% of 3.41 MB dense in bfloat16" in result.stderr
    assert "5 tokens in" in result.stderr


def test_run_is_the_same_every_time_and_as_json() -> None:
    text = run().stdout.removeprefix("The memory").removesuffix("\n")
    result = run("--format", "json")
    found: dict[str, Any] = json.loads(result.stdout)
    assert (found["text"], found["tokens"], found["prompt"]) == (text, 5, "The memory")
    assert found["layers"] == {"compressed-tensors int4 group 128 asymmetric": 14, "unquantized": 2}
    assert found["bytes_read"] > 1_600_000


def test_run_refuses_a_broken_checkpoint_in_one_line(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    drop_scales(folder, 0)
    result = call("run", folder, "--prompt", "x")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "QL201" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_run_without_a_tokenizer() -> None:
    without = next(path for path in samples() if not (path / "tokenizer.json").exists())
    result = call("run", without, "--prompt", "x")
    assert result.exit_code == 2
    assert "put tokenizer.json beside config.json" in result.stderr


@pytest.mark.parametrize("option", [["--device", "marsupial"], ["--dtype", "float33"], ["--max-new-tokens", "0"]])
def test_run_with_options_that_cannot_be(option: list[str]) -> None:
    result = run(*option)
    assert result.exit_code == 2
    assert "Error:" in result.stderr


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_660_000, "1.66 MB"), (5e12, "5.00 TB")]
)
def test_sizes_have_units(count: float, text: str) -> None:
    assert describe_bytes(count) == text


def test_nouns_have_numbers() -> None:
    assert [describe_count(n, "error") for n in (0, 1, 2)] == ["0 errors", "1 error", "2 errors"]
