"""The commands, as their users meet them: output, exit status, and never a traceback."""

import errno
import json
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from edits import WEIGHTS, copy_checkpoint, edit_config, edit_tensors, split_files, write_index
from samples import DATA, DEMO, samples
from torch import Tensor

import qload
from qload.cli import cli
from qload.cli.shared import describe_bytes, describe_count
from qload.errors import QloadError
from qload.hookspecs import Capabilities, MethodInfo
from qload.registry import Origin

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
    assert all(name in result.output for name in ("explain", "methods", "plan", "rules", "run", "validate"))
    for name in ("explain", "methods", "plan", "rules", "run", "validate"):
        assert call(name, "-h").exit_code == 0


def test_the_version_is_the_distributions() -> None:
    assert "0.1.0" in call("--version").output


def test_a_clean_checkpoint() -> None:
    result = call("validate", DEMO)
    assert result.exit_code == 0
    assert result.output == f"{DEMO}: nothing is wrong (compressed-tensors; 63 tensors, 1.66 MB)\n"


def test_a_warning_is_counted_shown_and_no_reason_not_to_run(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    placed = split_files(folder)
    forgotten = placed.popitem()[0]
    write_index(folder, placed)
    result = call("validate", folder, "--format", "concise")
    warning, verdict = result.output.splitlines()
    assert result.exit_code == 1
    assert f": QL007 {forgotten}: " in warning
    assert verdict.startswith(f"{folder}: 1 warning (compressed-tensors;")
    result = call("run", folder, "--prompt", "The memory", "--max-new-tokens", 1)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith(f"QL007 warning: {forgotten}")


def test_a_method_that_cannot_be_had_is_unknown(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    edit_config(folder, lambda config: config["quantization_config"].update(quant_method="wish"))
    assert "1 error (method unknown; 63 tensors, 1.66 MB)" in call("validate", folder).output


def test_what_cannot_be_checked_is_2() -> None:
    result = call("validate", "nowhere")
    assert result.exit_code == 2
    assert result.output.startswith("Error: nowhere: there is no such folder")


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 100, b"{}"])
def test_no_bad_file_gives_a_traceback(broken: Callable[[str], Path], content: bytes) -> None:
    folder = broken(DEMO.name)
    for name in (WEIGHTS, "config.json"):
        (folder / name).write_bytes(content)
        for command in (["validate"], ["plan"], ["run", "--prompt", "x"]):
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
    (line,) = [
        line for line in result.output.splitlines() if line.startswith("compressed-tensors  ") and "qload" not in line
    ]
    assert line.split() == ["compressed-tensors", *["yes"] * 6]
    (line,) = [line for line in result.output.splitlines() if line.startswith("awq  ") and "qload" not in line]
    assert line.split() == ["awq", "yes", "yes", "yes", "-", "-", "-"]
    assert "quantizes while loading: fp8" in result.output
    assert rows["compressed-tensors"]["presets"] == sorted(rows["compressed-tensors"]["presets"]) != []


def test_run_quantizes_a_plain_checkpoint() -> None:
    result = call("run", DATA / "base", "--prompt", "The", "--max-new-tokens", "2", "--quantization", "int4")
    assert result.exit_code == 0
    assert "14 layers compressed-tensors int4 group 128" in result.output
    refused = call("run", DATA / "base", "--prompt", "The", "--quantization", "int5")
    assert (refused.exit_code, "no such preset" in refused.output) == (2, True)


def test_methods_shows_blocked_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLOAD_DISABLE", "awq")
    result = call("methods")
    assert "blocked" in result.output
    rows = {row["method"]: row for row in json.loads(call("methods", "--format", "json").output)}
    assert rows["awq"]["capabilities"] is None
    assert "take awq out of QLOAD_DISABLE" in rows["awq"]["summary"]


def test_methods_shows_broken_ones_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Origin("m", "m_module", "dist", "", lambda: 1 / 0)
    monkeypatch.setattr(qload.Registry, "discover", lambda: qload.Registry([broken]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = json.loads(call("methods", "--format", "json").output)
    assert (row["status"], row["from"]) == ("broken", ["dist"])
    assert "ZeroDivisionError" in row["summary"]


def test_brackets_in_what_a_plugin_says_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    info = MethodInfo("rows [/red] and [bold]", None, Capabilities(tensor_parallel="[/] units"))
    plugin = types.SimpleNamespace(
        qload_method_info=lambda: info,
        qload_scheme_for=lambda: None,
        qload_create_weights=lambda: (),
        qload_dequantize=lambda: None,
    )
    registry = qload.Registry([Origin("[/m]", "m", "[/dist]", "1", lambda: plugin)])
    monkeypatch.setattr(qload.Registry, "discover", lambda: registry)
    output = call("methods").output
    assert all(words in output for words in ("[/m]", "[/dist] 1", "rows [/red] and [bold]", "[/] units"))


def run(*more: object) -> Result:
    return call("run", DEMO, "--prompt", "The memory", "--max-new-tokens", 5, *more)


def test_run_goes_on_from_the_prompt_and_says_what_was_loaded() -> None:
    result = run()
    assert result.exit_code == 0
    assert result.stdout.startswith("The memory")
    assert "14 layers compressed-tensors int4 group 128 asymmetric" in result.stderr
    assert "MB on cpu, 49% of 3.41 MB dense in bfloat16" in result.stderr
    assert "5 tokens in" in result.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ("cpu", None, True)),
        (("--weights-only", "--dtype", "float16", "--device", "cuda:1"), ("cuda:1", "float16", False)),
    ],
)
def test_run_loads_as_it_is_told(
    options: tuple[str, ...], expected: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path, **given: object) -> None:
        raise QloadError(f"{path.name} {(given['device'], given['dtype'], given['quantize_activations'])}")

    monkeypatch.setattr(qload, "load", load)
    assert run(*options).stderr.strip() == f"Error: {DEMO.name} {expected}"


def test_run_is_the_same_every_time_and_as_json() -> None:
    text = run().stdout.removeprefix("The memory").removesuffix("\n")
    result = run("--format", "json")
    found: dict[str, Any] = json.loads(result.stdout)
    assert (found["text"], found["tokens"], found["prompt"]) == (text, 5, "The memory")
    assert found["layers"] == {"compressed-tensors int4 group 128 asymmetric": 14, "unquantized": 2}
    assert found["bytes_read"] > 1_600_000


def test_run_lists_what_is_wrong_with_a_broken_checkpoint(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    drop_scales(folder, 0, 1)
    edit_tensors(folder, lambda stored: stored.update(more=stored["model.norm.weight"].clone()))
    result = call("run", folder, "--prompt", "x")
    assert result.exit_code == 2
    assert result.stdout == ""
    missing, unexpected, last = result.stderr.strip().splitlines()
    assert missing.startswith("QL201 error: " + SCALE.format("{0..1}"))
    assert unexpected.startswith("QL210 error: more")
    assert last == f"Error: {folder}: 2 faults in the checkpoint"


@pytest.mark.parametrize("name", [".", ".a", "a.", "", "a..b", "a.weight.", ".weight.b", "a\nb", "\x1b[2J.weight"])
def test_a_tensors_name_may_be_anything(broken: Callable[[str], Path], name: str) -> None:
    """It is a finding at most, in one line, and never a traceback."""
    folder = broken(DEMO.name)
    edit_tensors(folder, lambda stored: stored.update({name: stored["model.norm.weight"].clone()}))
    result = call("validate", folder)
    assert result.exit_code == (1 if result.output.startswith("QL") else 0)
    assert result.output.splitlines()[-1].startswith(str(folder))
    assert "\x1b" not in result.output
    result = call("run", folder, "--prompt", "x")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 2


@pytest.mark.parametrize("command", [["validate"], ["plan"], ["run", "--prompt", "x"], ["methods"]])
def test_what_nobody_foresaw_is_one_line_and_2(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def discover() -> qload.Registry:
        raise KeyError("first\nsecond")

    monkeypatch.setattr(qload.Registry, "discover", discover)
    result = call(*command, *([] if command == ["methods"] else [DEMO]))
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(r"Error: unexpected KeyError: 'first\nsecond' (test_commands.py:")
    assert "in discover)" in line


def test_a_closed_pipe_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def discover() -> qload.Registry:
        raise BrokenPipeError(errno.EPIPE, "closed")

    monkeypatch.setattr(qload.Registry, "discover", discover)
    result = CliRunner().invoke(cli, ["methods"])
    assert result.exit_code == 1
    assert "defect" not in result.output


def test_a_full_disk_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def discover() -> qload.Registry:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(qload.Registry, "discover", discover)
    result = call("methods")
    assert result.exit_code == 2
    assert "no space left" in result.stderr


def test_whoever_gives_up_is_not_told_of_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def discover() -> qload.Registry:
        raise click.Abort

    monkeypatch.setattr(qload.Registry, "discover", discover)
    result = call("methods")
    assert (result.exit_code, result.output) == (1, "Aborted!\n")


@pytest.mark.parametrize("name", ["[red]a", "a\nb"])
def test_a_folder_may_be_called_anything(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    copy_checkpoint(DEMO, folder)
    shown = str(folder).replace("\n", " ")
    assert call("validate", folder).output.startswith(f"{shown}: nothing is wrong")
    if "\n" not in name:
        summary = call("run", folder, "--prompt", "x", "--max-new-tokens", 1).stderr
        # On as many lines as a narrow terminal needs, and whole.
        assert "".join(f"{shown}, compressed-tensors".split()) in "".join(summary.split())


def test_run_names_the_most_frequent_layers_first() -> None:
    lines = run().stderr.splitlines()
    counts = [
        line.split()[0] for line in lines if line.startswith(" ") and " layers " in line and line.split()[0].isdigit()
    ]
    assert counts == ["14", "2"]
    computes = [line.split()[1:] for line in lines if line.startswith("computes")]
    assert computes == [["14", "layers", "by", "int4pack_mm_for_cpu"], ["1", "layer", "by", "linear"]]


def test_run_computes_with_the_kernels_that_are_named_and_says_why_it_has_none() -> None:
    summary = run("--kernels", "none").stderr
    assert "14 layers by dequantize" in summary
    assert "14 layers: no kernels were asked for" in summary
    assert "14 layers by int4pack_mm_for_cpu" in run("--kernels", "int4pack_mm_for_cpu").stderr
    refused = run("--kernels", "int5")
    assert refused.exit_code == 2
    assert "there is no kernel of that name" in refused.stderr
    assert "int4pack_mm_for_cpu" in refused.stderr


def test_run_without_a_tokenizer() -> None:
    without = next(path for path in samples() if not (path / "tokenizer.json").exists())
    result = call("run", without, "--prompt", "x")
    assert result.exit_code == 2
    assert result.stderr.endswith("there is no tokenizer; put tokenizer.json beside config.json\n")


def test_run_with_a_tokenizer_that_is_none(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    (folder / "tokenizer.json").write_text("{}")
    result = call("run", folder, "--prompt", "x")
    assert result.exit_code == 2
    assert "the tokenizer cannot be read: " in result.stderr
    assert result.stderr.count("\n") == 1


def test_run_without_a_folder() -> None:
    result = call("run", Path("nowhere"), "--prompt", "x")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: nowhere: there is no such folder")


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
