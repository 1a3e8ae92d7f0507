"""`qload validate`: what it prints where, and what its exit status says."""

import importlib.util
import json
import os
import stat
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from breaking import add, drop
from click.testing import CliRunner, Result
from edits import INDEX, copy_checkpoint, split_files, write_index
from reporting import drop_scales, pointed
from samples import DATA, DEMO
from torch import zeros

from qload.cli import cli
from qload.errors import CheckpointError
from qload.findings import report
from qload.formats import FORMATS
from qload.validation import validate
from qload.validation.baseline import Baseline, fingerprint

SCALE = "model.layers.0.mlp.down_proj.weight_scale"
SURPLUS = "model.layers.0.mlp.down_proj.surplus"
MACHINES = [name for name in FORMATS if name not in ("full", "concise")]


def call(*arguments: object, **options: str) -> Result:
    result = CliRunner().invoke(cli, ["validate", *map(str, arguments)], env=options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def scaleless(broken: Callable[[str], Path]) -> Path:
    """A checkpoint with one error in each of two layers."""
    folder = broken(DEMO.name)
    drop_scales(folder)
    return folder


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A checkpoint with one warning."""
    folder = copy_checkpoint(DEMO, tmp_path / "stale")
    placed = split_files(folder)
    placed.popitem()
    write_index(folder, placed)
    return folder


@pytest.fixture
def unreadable(broken: Callable[[str], Path]) -> Path:
    """A checkpoint of whose two files one cannot be read."""
    folder = broken(DEMO.name)
    name = sorted(set(split_files(folder).values()))[0]
    (folder / name).unlink()
    (folder / name).mkdir()
    return folder


def codes(result: Result) -> list[str]:
    (checkpoint,) = json.loads(result.stdout)["checkpoints"]
    return [finding["code"] for finding in checkpoint["findings"]]


@pytest.mark.parametrize("name", FORMATS)
def test_the_status_is_the_same_in_every_format(name: str, unreadable: Path) -> None:
    assert call(DEMO, "--format", name).exit_code == 0
    assert call(DATA / "base", DEMO, "--tp", "1", "--format", name).exit_code == 0
    assert call(unreadable, "--format", name).exit_code == 2
    assert call("nowhere", "--format", name).exit_code == 2


@pytest.mark.parametrize(("fail_on", "status"), [("error", 0), ("warning", 1), ("never", 0)])
def test_warnings_fail_where_that_is_asked_for(fail_on: str, status: int, stale: Path) -> None:
    assert call(stale, "--fail-on", fail_on).exit_code == status


@pytest.mark.parametrize(("fail_on", "status"), [("error", 1), ("warning", 1), ("never", 0)])
def test_errors_fail_but_where_nothing_does(fail_on: str, status: int, scaleless: Path) -> None:
    assert call(scaleless, "--fail-on", fail_on).exit_code == status


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--fail-on", "never"),
        ("--ignore", "QL"),
        ("--ignore", "QL013"),
        ("--select", "QL5"),
        ("--quiet",),
        ("--output", "report"),
        ("--write-baseline", "known"),
    ],
)
def test_what_could_not_be_read_is_2_whatever_is_asked_for(
    options: tuple[str, ...], unreadable: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(unreadable, *options).exit_code == 2
    assert call("nowhere", *options).exit_code == 2
    if "--write-baseline" in options:
        assert call(unreadable, "--baseline", "known").exit_code == 2


def test_full_shows_the_line_with_a_caret_under_the_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finding with a pointer, which no rule needs to make for this."""
    folder = pointed(tmp_path / "model", lambda whole: whole.update(tied="é🦙 yes"))
    fault = report("QL105", "is no truth", file="config.json", where="tied", pointer=("tied",))
    value = json.dumps("é🦙 yes", ensure_ascii=False)
    monkeypatch.setattr("qload.validation.report.FINDERS", (lambda found: [fault],))
    path = folder / "config.json"
    path.write_text(path.read_text().replace(json.dumps("é🦙 yes"), value))
    text = call(folder).output
    lines = (folder / "config.json").read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if '"tied"' in line)
    block = text.splitlines()
    margin = " " * len(str(number))
    assert block[0] == "error[QL105]: is no truth"
    assert block[1] == f"{margin}--> {folder / 'config.json'}:{number}:11"
    assert block[2] == f"{margin} |"
    assert block[3] == f"{number} | {lines[number - 1]}"
    start = block[4].index("^")
    assert block[3][start:].startswith(value)
    assert block[4].count("^") == len(value) + 1, "the llama is two columns wide"
    assert block[5] == f"{margin} = where: tied"


def test_carets_stand_under_what_follows_wide_characters(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    (folder / "config.json").write_text('{"模型": oops}\n')
    _, _, _, line, carets, *_ = call(folder).output.splitlines()
    assert carets.index("^") == line.index("oops") + len("模型")


def test_what_is_no_json_is_shown_where_it_breaks_off(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    (folder / "config.json").write_text('{\n  "model_type": llama\n}\n')
    text = call(folder, "--format", "full").output
    assert f"{folder / 'config.json'}:2:17" in text
    assert '2 |   "model_type": llama\n  |                 ^\n' in text


def test_one_line_of_megabytes_is_shown_in_part(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    filler = json.dumps("x" * 1_000_000)
    (folder / "config.json").write_text(f'{{"a": {filler}, "b": oops, "c": {filler}}}')
    lines = call(folder).output.splitlines()
    assert max(map(len, lines)) < 1000
    (shown,) = [line for line in lines if "oops" in line]
    caret = next(line for line in lines if "^" in line)
    assert shown[caret.index("^") :].startswith("oops")


def test_what_is_wrong_comes_first_and_the_verdict_last(scaleless: Path) -> None:
    lines = call(scaleless, "--format", "concise").output.splitlines()
    assert lines == [
        f"{scaleless}: QL201 {SCALE.replace('0', '{0..1}')} (2): the group scale is not stored (expected a tensor of a "
        "module that is compressed-tensors int4 group 128 asymmetric); the checkpoint is incomplete, or its config "
        "names the wrong modules",
        f"{scaleless}: 2 errors (compressed-tensors; 61 tensors, 1.66 MB)",
    ]
    assert call(scaleless, "--format", "concise", "--quiet").output.splitlines() == lines[:1]
    assert len(call(scaleless, "--format", "concise", "--no-collapse").output.splitlines()) == 3


@pytest.mark.parametrize("name", MACHINES)
def test_programs_get_nothing_but_the_document(name: str, scaleless: Path, tmp_path: Path) -> None:
    result = call(scaleless, "nowhere", "--format", name)
    assert result.stderr.startswith("Error: nowhere: there is no such folder")
    assert "nothing is wrong" not in result.stdout
    assert str(scaleless) + ": 2 errors" not in result.stdout
    file = tmp_path / "report"
    written = call(scaleless, "nowhere", "--format", name, "--output", file)
    assert file.read_text() == result.stdout
    assert written.stdout == f"{scaleless}: 2 errors (compressed-tensors; 61 tensors, 1.66 MB)\n"


def test_what_is_written_is_written_as_a_whole(
    scaleless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report"
    file.write_text("old")
    file.chmod(0o640)
    assert call(scaleless, "--output", file).exit_code == 1
    assert "QL201" in file.read_text()
    assert "\x1b" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    before = file.read_text()
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "no space")))
    result = call(DEMO, "--output", file)
    assert (result.exit_code, "no space" in result.stderr) == (2, True)
    assert file.read_text() == before
    assert [each.name for each in tmp_path.iterdir() if "report" in each.name] == ["report"]
    assert call(DEMO, "--output", tmp_path / "none" / "x").exit_code == 2


@pytest.mark.parametrize("option", ["--output", "--write-baseline"])
def test_what_is_no_file_is_written_into_and_stays_what_it_is(option: str, scaleless: Path, tmp_path: Path) -> None:
    """A device in whose place a file is put is lost to the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        call(scaleless, option, pipe)
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert b"QL201" in os.read(reading, 1 << 16)
    finally:
        os.close(reading)


def test_what_a_link_points_at_is_written(scaleless: Path, tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(file)
    for _ in range(2):
        assert call(scaleless, "--output", link).exit_code == 1
        assert link.is_symlink()
        assert "QL201" in file.read_text()
    assert "Is a directory" in call(scaleless, "--output", "").stderr


def test_a_path_that_can_be_no_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("")
    os.mkfifo(tmp_path / "pipe")
    for path, reason in {
        tmp_path / ("a" * 5000): "the folder cannot be read: File name too long",
        file / "below": "is no folder, nor a file of a checkpoint",
        tmp_path / "pipe": "is no folder, nor a file of a checkpoint",
    }.items():
        result = call(path)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert f"{path}: {reason}" in result.stderr


def test_colours_are_for_terminals_that_want_them(scaleless: Path) -> None:
    assert "\x1b" not in call(scaleless, NO_COLOR="1", FORCE_COLOR="1").output
    assert "\x1b" not in call(scaleless).output
    assert "\x1b[31m" in call(scaleless, FORCE_COLOR="1").output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["QL210", "QL201"]),
        (("--select", "QL201"), ["QL201"]),
        (("--select", "QL1,QL20"), ["QL201"]),
        (("--ignore", "QL2"), []),
        (("--ignore", "QL2", "--select", "QL201"), ["QL201"]),
        (("--ignore", "QL210"), ["QL201"]),
        (("--select", "QL2", "--ignore", "QL201"), ["QL210"]),
        (("--select", "XY"), []),
        (("--ignore", "QL201", "--ignore", "QL210,XY12"), []),
    ],
)
def test_rules_are_chosen_by_the_beginnings_of_their_codes(
    options: tuple[str, ...], expected: list[str], broken: Callable[[str], Path]
) -> None:
    folder = broken(DEMO.name)
    drop(SCALE)(folder)
    add(SURPLUS, zeros(2))(folder)
    result = call(folder, "--format", "json", *options)
    assert sorted(codes(result)) == sorted(expected)
    assert result.exit_code == bool(expected)


@pytest.mark.parametrize("bad", ["QL999", "ql201", "QL201;QL2", "\x1b[31m"])
def test_no_such_rule_is_a_usage_error(bad: str) -> None:
    result = call(DEMO, "--select", bad)
    assert (result.exit_code, "there is no rule" in result.stderr) == (2, True)
    assert "\x1b" not in result.output


def test_a_baseline_hides_what_is_known_and_nothing_else(scaleless: Path, tmp_path: Path) -> None:
    known = tmp_path / "known.json"
    result = call(scaleless, "--write-baseline", known)
    assert (result.exit_code, result.stdout) == (0, f"{known}: 2 findings written\n")
    result = call(scaleless, "--baseline", known)
    assert result.exit_code == 0
    assert result.stdout == f"{scaleless}: nothing new is wrong, 2 known (compressed-tensors; 61 tensors, 1.66 MB)\n"
    add(SURPLUS, zeros(2))(scaleless)
    result = call(scaleless, "--baseline", known, "--format", "json")
    assert (codes(result), result.exit_code) == (["QL210"], 1)
    other = copy_checkpoint(scaleless, tmp_path / "other")
    assert len(codes(call(other, "--baseline", known, "--format", "json"))) == 3


def test_a_baseline_is_for_whoever_has_the_folders_beside_it(
    scaleless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = scaleless / "known.json"
    assert call(scaleless, "--write-baseline", known).exit_code == 0
    first = known.read_text()
    moved = tmp_path / "moved"
    scaleless.rename(moved)
    monkeypatch.chdir(moved)
    assert call(".", "--baseline", "known.json").exit_code == 0
    assert call("../moved", "--write-baseline", "again.json").exit_code == 0
    assert Path("again.json").read_text() == first


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"version": 2, "checkpoints": {}}', b"\xff", b'{"version": 1}']
)
def test_what_is_no_baseline_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    path.write_bytes(content)
    result = call(DEMO, "--baseline", path)
    assert (result.exit_code, "the baseline cannot be read" in result.stderr) == (2, True)
    assert call(DEMO, "--baseline", tmp_path / "none").exit_code == 2


def test_a_baseline_that_somebody_wrote_hides_nothing_that_could_not_be_read(unreadable: Path) -> None:
    found = validate(unreadable)
    assert found.unreadable
    every = frozenset(map(fingerprint, found.findings))
    assert Baseline(unreadable, {".": every}).apply(found).findings == found.unreadable


def test_a_fingerprint_is_of_the_place_and_not_of_the_line() -> None:
    one = report("QL107", "matches nothing", file="config.json", pointer=("ignore", 3), line=4, column=2)
    moved = report("QL107", "matches nothing", file="config.json", pointer=("ignore", 5), line=9, column=8)
    assert fingerprint(one) == fingerprint(moved)
    others = [
        report("QL108", "matches nothing", file="config.json", pointer=("ignore", 3)),
        report("QL107", "matches something", file="config.json", pointer=("ignore", 3)),
        report("QL107", "matches nothing", file="other.json", pointer=("ignore", 3)),
        report("QL107", "matches nothing", file="config.json", pointer=("targets", 3)),
        report("QL107", "matches nothing", file="config.json", where="x", pointer=("ignore", 3)),
    ]
    assert len({fingerprint(each) for each in [one, *others]}) == len(others) + 1


def test_several_checkpoints_are_each_reported_and_the_worst_counts(stale: Path) -> None:
    result = call(DEMO, stale, DATA / "ct-fp8-block", "--format", "json")
    assert result.exit_code == 1
    found = [checkpoint["asked"] for checkpoint in json.loads(result.stdout)["checkpoints"]]
    assert found == [str(DEMO), str(stale), str(DATA / "ct-fp8-block")]
    result = call("nowhere", DEMO, "--format", "json")
    assert result.exit_code == 2
    assert len(json.loads(result.stdout)["checkpoints"]) == 1


def test_files_of_a_checkpoint_are_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["config.json", "model.safetensors"]
    paths = [*(DEMO / name for name in names), DEMO, f"{DEMO}/", DATA / "gguf" / "missing.gguf"]
    result = call(*paths, "--whole", "--format", "json")
    assert [each["asked"] for each in json.loads(result.stdout)["checkpoints"]] == [str(DEMO)]
    assert len(json.loads(result.stdout)["failures"]) == 1
    monkeypatch.chdir(DEMO)
    result = call(*names, "--whole", "--format", "json")
    assert [each["asked"] for each in json.loads(result.stdout)["checkpoints"]] == ["."]


def test_a_config_is_checked_by_itself_and_weights_with_their_folder() -> None:
    result = call(DEMO / "config.json", DEMO / "model.safetensors", "--format", "json")
    found = [(each["asked"], each["tensors"]) for each in json.loads(result.stdout)["checkpoints"]]
    assert found == [(str(DEMO / "config.json"), 0), (str(DEMO), 63)]


def test_ranks_are_told_to_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def find(_: object, sizes: tuple[int, ...]) -> tuple[()]:
        seen.append(sizes)
        return ()

    monkeypatch.setattr("qload.validation.report.find_splits", find)
    assert call(DEMO, "--tp", "1,2,64").exit_code == 0
    assert call(DEMO).exit_code == 0
    assert seen == [(1, 2, 64), ()]
    for bad in ("0", "1,,2", "two", ""):
        assert call(DEMO, "--tp", bad).exit_code == 2


@pytest.mark.parametrize(("options", "expected"), [((), []), (("--probe",), [False]), (("--deep",), [True])])
def test_data_is_read_where_that_is_asked_for(
    options: tuple[str, ...], expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def find(_: object, *, deep: bool, **__: object) -> tuple[()]:
        seen.append(deep)
        return ()

    monkeypatch.setattr("qload.validation.report.find_bad_values", find)
    assert call(DEMO, *options).exit_code == 0
    assert seen == expected


def test_a_bar_is_shown_on_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int]] = []
    told: list[bool] = []

    def find(*_: object, progress: Callable[[int, int], None] | None, **__: object) -> tuple[()]:
        told.append(progress is not None)
        if progress is not None:
            progress(1, 2)
        return ()

    monkeypatch.setattr("qload.validation.report.find_bad_values", find)
    monkeypatch.setattr("qload.cli.bars.ByteBar.show", lambda bar, done, total: shown.append((done, total)))
    assert call(DEMO, "--deep").exit_code == 0
    monkeypatch.setattr("qload.cli.validate._is_terminal", lambda: True)
    assert call(DEMO, "--deep").exit_code == 0
    assert call(DEMO, "--deep", "--quiet").exit_code == 0
    assert call(DEMO, "--probe").exit_code == 0
    assert told == [False, True, False, False]
    assert shown == [(1, 2)]


def test_a_report_is_one_value_with_text_and_can_stop_a_tool(scaleless: Path) -> None:
    found = validate(scaleless)
    assert found == validate(str(scaleless))
    assert hash(found) == hash(validate(scaleless))
    assert (found.asked, found.place, found.warnings, found.unreadable) == (str(scaleless), str(scaleless), (), ())
    assert str(found) == call(scaleless, "--format", "concise").output.removesuffix("\n")
    with pytest.raises(CheckpointError) as caught:
        found.raise_for_errors()
    assert caught.value.findings == found.errors
    validate(DEMO).raise_for_errors()
    found.select(ignore=["QL201"]).raise_for_errors()
    for codes in (["QL2"], ["QL1,QL2"], "QL2", "QL1,QL2", ("QL1", "QL201")):
        assert validate(scaleless, ignore=codes) == found.select(ignore=codes)
        assert found.select(ignore=codes).findings == ()
        assert found.select(codes) == found


def test_junit_passes_where_nothing_is_wrong() -> None:
    root = ElementTree.fromstring(call(DEMO, "--format", "junit").stdout)
    assert (root.attrib["tests"], root.attrib["failures"], root.attrib["errors"]) == ("1", "0", "0")


@dataclass
class Change:
    """A repair as the command needs it."""

    file: Path
    what: str = "the index is \x1b rebuilt"
    diff: Callable[[], str] = lambda: '-  "a": 1\n+  "\x1b": 2\n'


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Change]:
    """The repairs that are made in place of those that would be."""
    applied: list[Change] = []
    repairs = types.ModuleType("qload.repair")
    vars(repairs).update(plan_repairs=lambda path, registry: (Change(Path(path) / INDEX),), apply=applied.extend)
    monkeypatch.setitem(sys.modules, "qload.repair", repairs)
    return applied


def test_repairs_are_made_where_that_is_asked_for(made: list[Change], stale: Path) -> None:
    result = call(stale, "--fix")
    assert [change.file for change in made] == [stale / INDEX]
    assert result.stderr == f"fixed {stale / INDEX}: the index is \\x1b rebuilt\n"
    assert result.exit_code == 1, "what is still wrong is reported"
    assert call(stale, "--fix", "--quiet").stderr == ""


def test_repairs_are_shown_where_that_is_asked_for(made: list[Change], stale: Path) -> None:
    result = call(stale, "--diff", "--format", "concise")
    first, second, *rest = result.stdout.splitlines()
    assert (first, second) == ('-  "a": 1', '+  "\\x1b": 2')
    assert rest == call(stale, "--format", "concise").stdout.splitlines()
    assert made == []


def test_a_diff_stays_out_of_the_documents_of_programs(made: list[Change], stale: Path, tmp_path: Path) -> None:
    result = call(stale, "--diff", "--format", "json")
    assert (result.exit_code, "--output" in result.stderr) == (2, True)
    result = call(stale, "--diff", "--format", "json", "--output", tmp_path / "report")
    assert result.exit_code == 1
    assert json.loads((tmp_path / "report").read_text())["complete"]
    assert made == []


@pytest.mark.skipif(importlib.util.find_spec("qload.repair") is None, reason="there are no repairs")
def test_what_is_mended_is_sound(stale: Path) -> None:
    shown = call(stale, "--diff")
    assert (shown.exit_code, "+++ b/" in shown.stdout) == (1, True)
    assert call(stale, "--fix").exit_code == 0
    assert call(stale).exit_code == 0


def test_help_names_every_option() -> None:
    text = call("--help").output
    for option in ("--format", "--select", "--ignore", "--fail-on", "--baseline", "--tp", "--probe", "--deep", "--fix"):
        assert option in text


def test_os_errors_of_positions_leave_findings_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = pointed(tmp_path / "model", lambda whole: None)
    fault = report("QL105", "is wrong", file="config.json", pointer=("model_type",))

    def find(_: object) -> list[object]:
        os.remove(folder / "config.json")  # noqa: PTH107 - between reading it and looking for the line
        return [fault]

    monkeypatch.setattr("qload.validation.report.FINDERS", (find,))
    assert validate(folder).findings == (fault,)


def test_a_baseline_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "known")
    result = call(DEMO, "--baseline", tmp_path / "known")
    assert result.exit_code == 2
    assert "the baseline cannot be read" in result.stderr
