"""Repairs: what they clear stays clear, what they cannot be sure of they leave, and files are never half written."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edits import INDEX, WEIGHTS, copy_checkpoint, edit_config, split_files, write_index
from safetensors.torch import load_file, save_file
from samples import DATA, DEMO, read_config, samples

import qload
from qload import Registry
from qload.checkpoint import Folder, open_folder
from qload.errors import QloadError
from qload.repair import Repair, apply, plan_repairs

CONFIG, SIDE = "config.json", "quantize_config.json"
GPTQ = "gptq-4bit-g128-asym"
Break = Callable[[Path], Any]


def codes(folder: Path) -> set[str]:
    return {finding.code for finding in qload.validate(folder).findings}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def rewrite_index(folder: Path, **changes: Any) -> None:
    table = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**table, **changes}, indent=4))


def rename_file(folder: Path) -> None:
    placed = split_files(folder)
    (folder / min(placed.values())).rename(folder / "model-first.safetensors")


def swap_files(folder: Path) -> None:
    placed = split_files(folder)
    first, second = sorted(set(placed.values()))
    write_index(folder, {name: second if file == first else first for name, file in placed.items()})


def forget(folder: Path) -> None:
    placed = split_files(folder)
    placed.popitem()
    write_index(folder, placed)


def lose_index(folder: Path) -> None:
    split_files(folder, 3)
    (folder / INDEX).unlink()


def miscount(folder: Path) -> None:
    split_files(folder)
    rewrite_index(folder, metadata={"total_size": 7, "by": "hand"}, more=[1])


def garble_index(folder: Path) -> None:
    split_files(folder)
    (folder / INDEX).write_text("{")


def point_index(folder: Path) -> None:
    split_files(folder)
    (folder / INDEX).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n")


def leave_index(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for file in set(split_files(folder).values()):
        (folder / file).unlink()
    (folder / WEIGHTS).write_bytes(whole)


INDEX_FAULTS: dict[str, tuple[str, Break]] = {
    "a file of another name": ("QL005", rename_file),
    "tensors in each other's files": ("QL006", swap_files),
    "a tensor that is not named": ("QL007", forget),
    "no index": ("QL007", lose_index),
    "another total": ("QL007", miscount),
    "no JSON": ("QL105", garble_index),
    "a pointer": ("QL002", point_index),
    "left from before files were merged": ("QL007", leave_index),
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_an_index_is_rebuilt_and_then_clean(fault: str, broken: Callable[[str], Path], registry: Registry) -> None:
    code, breaks = INDEX_FAULTS[fault]
    folder = broken(DEMO.name)
    breaks(folder)
    others = {name: each for name, each in hashes(folder).items() if name != INDEX}
    assert code in codes(folder)
    (repair,) = plan_repairs(folder, registry)
    apply([repair])
    assert (repair.file, codes(folder)) == (folder / INDEX, set())
    assert {name: each for name, each in hashes(folder).items() if name != INDEX} == others
    table = json.loads((folder / INDEX).read_text())
    assert list(table["weight_map"]) == sorted(load_file(DEMO / WEIGHTS))
    assert table["metadata"]["total_size"] == open_folder(Folder(DEMO)).nbytes
    assert plan_repairs(folder, registry) == ()


def test_what_else_an_index_says_stays_in_its_form(broken: Callable[[str], Path], registry: Registry) -> None:
    folder = broken(DEMO.name)
    miscount(folder)
    apply(plan_repairs(folder, registry))
    text = (folder / INDEX).read_text()
    assert json.loads(text)["metadata"]["by"] == "hand"
    assert json.loads(text)["more"] == [1]
    assert text.startswith('{\n    "metadata"')
    assert not text.endswith("\n")


def lose_file(folder: Path) -> None:
    (folder / min(split_files(folder).values())).unlink()


def lose_part(folder: Path) -> None:
    lose_index(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def name_what_is_nowhere(folder: Path) -> None:
    placed = split_files(folder)
    write_index(folder, {**placed, "model.lost.weight": min(placed.values())})


def store_twice(folder: Path) -> None:
    placed = split_files(folder)
    first, second = sorted(set(placed.values()))
    save_file({**load_file(folder / first), **load_file(folder / second)}, folder / first)
    placed.popitem()
    write_index(folder, placed)


def cut_file(folder: Path) -> None:
    forget(folder)
    os.truncate(folder / "model-00001-of-00002.safetensors", 2000)


def mix_sets(folder: Path) -> None:
    lose_index(folder)
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "model-00001-of-00001.safetensors")


def lay_beside(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    split_files(folder)
    (folder / WEIGHTS).write_bytes(whole)


UNSURE: dict[str, Break] = {
    "a file is gone": lose_file,
    "a part is gone, and no index": lose_part,
    "a tensor is nowhere": name_what_is_nowhere,
    "a tensor is stored twice": store_twice,
    "a file is cut": cut_file,
    "two sets": mix_sets,
    "two sets and an index": lay_beside,
    "no JSON in config.json": lambda folder: (folder / CONFIG).write_text("{"),
}


@pytest.mark.parametrize("fault", UNSURE)
def test_what_is_not_sure_is_left_alone(fault: str, broken: Callable[[str], Path], registry: Registry) -> None:
    folder = broken(DEMO.name)
    UNSURE[fault](folder)
    assert codes(folder) != set()
    assert plan_repairs(folder, registry) == ()


@pytest.mark.parametrize("path", samples(), ids=lambda path: path.name)
def test_a_sound_checkpoint_needs_no_repair(path: Path, registry: Registry) -> None:
    assert plan_repairs(path, registry) == ()


def move_config(folder: Path, side: str = SIDE, *keep: str) -> dict[str, Any]:
    """Put the quantization config into a side file alone; returns it."""
    section: dict[str, Any] = read_config(folder)["quantization_config"]
    edit_config(folder, lambda config: config.pop("quantization_config"))
    side_config = {key: value for key, value in section.items() if key != "quant_method" or key in keep}
    (folder / side).write_text(json.dumps(side_config))
    return section


@pytest.mark.parametrize("indent", [None, 1, 2, 4, "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_side_file_is_copied_and_all_else_stays(
    indent: Any, newline: str, broken: Callable[[str], Path], registry: Registry
) -> None:
    folder = broken(GPTQ)
    section = move_config(folder)
    config = {**read_config(folder), "note": "größer", "tiny": 1e-30}
    text = json.dumps(config, indent=indent, ensure_ascii=False).replace("1e-30", "1.0E-30").replace("\n", newline)
    (folder / CONFIG).write_bytes(f"{text}{newline}".encode())
    others = {name: each for name, each in hashes(folder).items() if name != CONFIG}
    (repair,) = plan_repairs(folder, registry)
    apply([repair])
    written = (folder / CONFIG).read_bytes().decode()
    assert json.loads(written) == {**config, "quantization_config": section}
    kept = text.rstrip("}").rstrip()
    assert written.startswith(f"{kept},")
    assert written.count(newline) == written.count("\n")
    if indent is not None:
        member = {"quantization_config": {"quant_method": "gptq", **json.loads((folder / SIDE).read_text())}}
        assert json.dumps(member, indent=indent)[1:-2].replace("\n", newline).strip() in written
    assert {name: each for name, each in hashes(folder).items() if name != CONFIG} == others
    assert plan_repairs(folder, registry) == ()
    (folder / SIDE).unlink()
    assert qload.validate(folder).method == "gptq"
    assert codes(folder) == set()


@pytest.mark.parametrize(
    ("name", "side"), [("autoawq-gemm-g128", "quant_config.json"), ("modelopt-nvfp4", "hf_quant_config.json")]
)
def test_side_files_of_other_tools(name: str, side: str, broken: Callable[[str], Path], registry: Registry) -> None:
    folder = broken(name)
    sound = codes(folder)
    if (folder / side).exists():
        edit_config(folder, lambda config: config.pop("quantization_config", None))
    else:
        section = read_config(folder)["quantization_config"]
        renamed = {"w_bit": section["bits"], "q_group_size": section["group_size"]}
        edit_config(folder, lambda config: config.pop("quantization_config"))
        (folder / side).write_text(json.dumps({**renamed, "zero_point": True, "version": "GEMM"}))
    method = qload.validate(folder).method
    (repair,) = plan_repairs(folder, registry)
    assert side in repair.what
    apply([repair])
    assert plan_repairs(folder, registry) == ()
    (folder / side).unlink()
    assert (qload.validate(folder).method, codes(folder)) == (method, sound)


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_section_is_filled(empty: Any, broken: Callable[[str], Path], registry: Registry) -> None:
    folder = broken(GPTQ)
    section = move_config(folder)
    edit_config(folder, lambda config: config.update(quantization_config=empty))
    apply(plan_repairs(folder, registry))
    assert read_config(folder)["quantization_config"] == section
    assert (folder / CONFIG).read_text().count("quantization_config") == 1


def test_a_config_that_is_not_utf_8_is_left_alone(broken: Callable[[str], Path], registry: Registry) -> None:
    folder = broken(GPTQ)
    move_config(folder)
    (folder / CONFIG).write_bytes((folder / CONFIG).read_text().encode("utf-16"))
    assert plan_repairs(folder, registry) == ()


def test_a_diff_is_what_changes(broken: Callable[[str], Path], registry: Registry) -> None:
    folder = broken(DEMO.name)
    lose_index(folder)
    (repair,) = plan_repairs(folder, registry)
    lines = repair.diff().splitlines()
    assert lines[:2] == ["--- /dev/null", f"+++ b/{INDEX}"]
    assert "\n".join(line[1:] for line in lines[3:]) + "\n" == repair.after.decode()
    changed = Repair(folder / INDEX, "", b"{\n1\n}", b"{\n2\n}\n")
    assert changed.diff().splitlines()[3:] == [" {", "-1", "-}", "\\ No newline at end of file", "+2", "+}"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_a_file_keeps_its_mode(mode: int, broken: Callable[[str], Path], registry: Registry) -> None:
    folder = broken(DEMO.name)
    miscount(folder)
    (folder / INDEX).chmod(mode)
    apply(plan_repairs(folder, registry))
    assert stat.S_IMODE((folder / INDEX).stat().st_mode) == mode


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failure_half_way_leaves_the_files(
    call: str, broken: Callable[[str], Path], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = broken(GPTQ)
    move_config(folder)
    miscount(folder)
    before, repairs = hashes(folder), plan_repairs(folder, registry)
    assert [repair.file.name for repair in repairs] == [INDEX, CONFIG]

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(QloadError, match=r"cannot be written: No space left"):
            apply(repairs)
    assert hashes(folder) == before
    apply(repairs)
    assert codes(folder) == set()


def test_a_file_that_has_changed_since_is_left_alone(broken: Callable[[str], Path], registry: Registry) -> None:
    folder = broken(DEMO.name)
    miscount(folder)
    repairs = plan_repairs(folder, registry)
    rewrite_index(folder, more=[2])
    with pytest.raises(QloadError, match="has changed since"):
        apply(repairs)
    assert json.loads((folder / INDEX).read_text())["more"] == [2]


def test_links_and_caches_are_left_alone(broken: Callable[[str], Path], tmp_path: Path, registry: Registry) -> None:
    folder = broken(DEMO.name)
    miscount(folder)
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    before = hashes(blobs)
    repairs = plan_repairs(snapshot, registry)
    with pytest.raises(QloadError, match=r"is a link to \.\./\.\./blobs/\d+, and is not changed.*copy the checkpoint"):
        apply(repairs)
    (snapshot / INDEX).unlink()
    with pytest.raises(QloadError, match="lies in a cache"):
        apply(plan_repairs(snapshot, registry))
    assert hashes(blobs) == before
    assert not (snapshot / INDEX).exists()


def test_the_files_are_not_read_by_others(broken: Callable[[str], Path], registry: Registry) -> None:
    """What a repair is of lies in the folder itself: nothing is planned for a file given in its place."""
    assert plan_repairs(DATA / "autoround-gguf-q4_k_m" / "model.gguf", registry) == ()
    with pytest.raises(QloadError, match="there is no such folder"):
        plan_repairs(broken(DEMO.name) / "nothing", registry)


def test_a_repaired_copy_loads_as_the_original(tmp_path: Path, registry: Registry) -> None:
    folder = copy_checkpoint(DEMO, tmp_path / "copy")
    swap_files(folder)
    apply(plan_repairs(folder, registry))
    theirs, ours = open_folder(Folder(DEMO)), open_folder(Folder(folder))
    for name, entry in ours.tensors.items():
        original = theirs.tensors[name]
        with (folder / entry.file).open("rb") as file, (DEMO / WEIGHTS).open("rb") as whole:
            file.seek(entry.start)
            whole.seek(original.start)
            assert file.read(entry.nbytes) == whole.read(original.nbytes)
