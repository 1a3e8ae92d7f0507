"""The rules of files: what is wrong between a folder's files is found, and what is right is not spoken of."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from breaking import Break, Case, cut
from edits import INDEX, WEIGHTS, copy_checkpoint, split_files, write_index
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from samples import DATA, DEMO, samples

import qload
from qload.catalogue import Severity
from qload.checkpoint import Folder, open_folder
from qload.findings import Finding

CONFIG, NORM = "config.json", "model.norm.weight"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4976698672\n"
OTHERS = ("gptq-4bit-g128-asym", "ct-fp8-block")


def find(folder: Path, **options: Any) -> tuple[Finding, ...]:
    return qload.validate(folder, **options).findings


def codes(folder: Path) -> list[str]:
    return [finding.code for finding in find(folder)]


def write(name: str, content: str) -> Break:
    return lambda folder: (folder / name).write_text(content)


def split(breaks: Callable[[Path, dict[str, str]], Any], count: int = 3) -> Break:
    """Break what was first turned into several files, given where each tensor then is."""
    return lambda folder: breaks(folder, split_files(folder, count))


def part(number: int, count: int = 3) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def place(**changes: str) -> Callable[[Path, dict[str, str]], Any]:
    return lambda folder, placed: write_index(folder, {**placed, **changes})


def name_file(name: str) -> Break:
    return split(lambda folder, placed: write_index(folder, {**placed, NORM: name}))


def set_total(folder: Path, total: object) -> None:
    table = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**table, "metadata": {"total_size": total}}))


def misplace(folder: Path, placed: Mapping[str, str]) -> None:
    """As when files were written anew, each with other tensors, and the index was not."""
    numbers = {part(number): part(number % 3 + 1) for number in (1, 2, 3)}
    write_index(folder, {name: numbers[file] for name, file in placed.items()})


def forget_norm(folder: Path, placed: Mapping[str, str]) -> None:
    write_index(folder, {name: file for name, file in placed.items() if name != NORM})


def copy_norm(folder: Path, placed: Mapping[str, str]) -> None:
    """A second norm, in another file that the index names, too."""
    other = next(file for file in sorted(set(placed.values())) if file != placed[NORM])
    save_file({**load_file(folder / other), NORM: torch.zeros(4)}, folder / other)


def copy_norm_and_lose_index(folder: Path, placed: Mapping[str, str]) -> None:
    copy_norm(folder, placed)
    (folder / INDEX).unlink()


def add_consolidated(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "consolidated.safetensors")


def keep_both(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    split_files(folder)
    (folder / WEIGHTS).write_bytes(whole)


def leave_part(folder: Path) -> None:
    split_files(folder, 3)
    shutil.copy(folder / part(1), folder / part(2, 5))


def consolidate(folder: Path) -> None:
    add_consolidated(folder)
    split_files(folder)


def keep_both_without_index(folder: Path) -> None:
    keep_both(folder)
    (folder / INDEX).unlink()


def link_nowhere(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("../../blobs/0123")


def pickle(name: str) -> Break:
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def in_place(make: Callable[[Path], Any], name: str = WEIGHTS) -> Break:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def listen(path: Path) -> None:
    """A socket in place of a file; its path is short, for the system bounds it."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def header(table: object, data: bytes = b"") -> Break:
    raw = table if isinstance(table, bytes) else json.dumps(table).encode()
    return lambda folder: (folder / WEIGHTS).write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def byte_tensor(start: int, stop: int, count: int = 1) -> dict[str, object]:
    return {"dtype": "U8", "shape": [count], "data_offsets": [start, stop]}


def cases() -> tuple[Case, ...]:
    on_demo: list[tuple[str, Break, str]] = [
        ("QL001", pickle("pytorch_model.bin"), ""),
        ("QL001", pickle("pytorch_model-00001-of-00001.bin"), ""),
        ("QL002", write(WEIGHTS, POINTER), ""),
        ("QL002", split(lambda folder, _: (folder / part(2)).write_text(POINTER)), ""),
        ("QL002", split(lambda folder, _: (folder / INDEX).write_text(POINTER)), ""),
        ("QL002", write(CONFIG, POINTER), ""),
        ("QL002", write("tokenizer.json", POINTER), ""),
        ("QL002", write("tokenizer.model", POINTER), ""),
        ("QL003", header(b"{"), ""),
        ("QL003", header(b"[" * 100_000), ""),
        ("QL003", header({"a": byte_tensor(0, 2)}, bytes(2)), "a"),
        ("QL003", header({"a": byte_tensor(0, 1), "b": byte_tensor(0, 1)}, bytes(1)), "b"),
        ("QL003", header({"a": byte_tensor(0, 1), "b": byte_tensor(2, 3)}, bytes(3)), "b"),
        ("QL003", header({"__metadata__": {"format": 3}, "a": byte_tensor(0, 1)}, bytes(1)), "format"),
        ("QL003", lambda folder: (folder / WEIGHTS).write_bytes((2**63).to_bytes(8, "little") + b"{}"), ""),
        ("QL004", cut(0), ""),
        ("QL004", cut(7), ""),
        ("QL004", cut(100), ""),
        ("QL004", cut(100_000), ""),
        ("QL005", split(lambda folder, placed: (folder / placed[NORM]).unlink()), ""),
        ("QL005", name_file("../model.safetensors"), ""),
        ("QL005", name_file("/etc/passwd"), ""),
        ("QL005", name_file("sub/../../x.safetensors"), ""),
        ("QL005", name_file("a\0.safetensors"), ""),
        ("QL005", name_file("a\n\x1b[31m.safetensors"), ""),
        ("QL005", name_file("a\ud800/b.safetensors"), ""),
        ("QL005", name_file("sub/x.safetensors"), ""),
        ("QL005", name_file(""), ""),
        ("QL005", link_nowhere, ""),
        ("QL006", split(misplace), "model."),
        ("QL006", split(place(surplus=part(1))), "surplus"),
        ("QL007", split(lambda folder, _: (folder / INDEX).unlink()), ""),
        ("QL007", split(forget_norm), NORM),
        ("QL007", split(lambda folder, _: set_total(folder, 7)), "metadata.total_size"),
        ("QL007", lambda folder: write_index(folder, {NORM: part(1)}), ""),
        ("QL008", split(copy_norm), NORM),
        ("QL008", split(copy_norm_and_lose_index), NORM),
        ("QL009", add_consolidated, ""),
        ("QL009", consolidate, ""),
        ("QL009", keep_both, ""),
        ("QL009", keep_both_without_index, ""),
        ("QL009", leave_part, ""),
        ("QL011", lambda folder: (folder / WEIGHTS).unlink(), ""),
        ("QL011", pickle("training_args.bin"), ""),
        ("QL011", pickle("adapter_model.safetensors"), ""),
        ("QL012", lambda folder: (folder / CONFIG).unlink(), ""),
        ("QL012", in_place(lambda path: path.symlink_to("nowhere"), CONFIG), ""),
        ("QL013", in_place(os.mkfifo), ""),
        ("QL013", in_place(os.mkdir), ""),
        ("QL013", in_place(listen), ""),
        ("QL013", in_place(lambda path: path.symlink_to("/dev/zero")), ""),
        ("QL013", in_place(lambda path: path.symlink_to(WEIGHTS)), ""),
        ("QL013", in_place(os.mkfifo, CONFIG), ""),
        ("QL105", split(lambda folder, _: (folder / INDEX).write_text("[" * 100_000)), ""),
        ("QL105", split(lambda folder, placed: write_index(folder, {**placed, NORM: 3})), NORM),  # type: ignore[dict-item]
    ]
    elsewhere = [
        Case(code, name, breaks, where)
        for name in OTHERS
        for code, breaks, where in on_demo
        if code in ("QL004", "QL009")
    ]
    return (*(Case(code, DEMO.name, breaks, where) for code, breaks, where in on_demo), *elsewhere)


CASES: tuple[Case, ...] = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.checkpoint}")
def test_what_is_wrong_with_files_is_found(case: Case, broken: Callable[[str], Path]) -> None:
    folder = broken(case.checkpoint)
    assert find(folder) == ()
    case.breaks(folder)
    found = find(folder, **case.options)
    assert any(each.code == case.code and each.where.startswith(case.where) for each in found), found


def link_cache(folder: Path) -> None:
    """As a hub's client keeps a repository: links to files named by their hashes."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    split_files(folder)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../blobs/{number}")


def link_disk(folder: Path) -> None:
    """Weights on another disk, by a link that is absolute."""
    disk = folder.parent / "disk"
    disk.mkdir()
    (folder / WEIGHTS).rename(disk / WEIGHTS)
    (folder / WEIGHTS).symlink_to(disk / WEIGHTS)


def lay_overlay(folder: Path) -> None:
    split_files(folder)
    save_file({NORM: torch.zeros(4)}, folder / "overlay.safetensors")


def lay_others(folder: Path) -> None:
    """What lies beside weights: adapters, pickled copies, what trainers leave, other formats, notes, folders."""
    split_files(folder)
    tensors = {NORM: torch.zeros(4)}
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "model.fp16.safetensors"):
        save_file(tensors, folder / name)
    for name in ("pytorch_model.bin", "training_args.bin", "README.md", "model.gguf", "optimizer.pt", "tekken.json"):
        (folder / name).write_bytes(b"{}")
    (folder / "original").mkdir()
    save_file(tensors, folder / "original" / "consolidated.00.safetensors")
    (folder / ".git").mkdir()


def number(name: str) -> Break:
    """Name the files otherwise, with an index that says so."""

    def change(folder: Path) -> None:
        placed = split_files(folder, 3)
        names = {part(each): name.format(each, each - 1) for each in (1, 2, 3)}
        for old, new in names.items():
            (folder / old).rename(folder / new)
        write_index(folder, {tensor: names[file] for tensor, file in placed.items()})

    return change


def leave_gap(folder: Path) -> None:
    """A file of a numbered set that the index does not name, and nobody needs."""
    split_files(folder, 2)
    placed = json.loads((folder / INDEX).read_text())["weight_map"]
    names = {part(1, 2): part(1), part(2, 2): part(3)}
    for old, new in names.items():
        (folder / old).rename(folder / new)
    write_index(folder, {tensor: names[file] for tensor, file in placed.items()})


def move_below(folder: Path) -> None:
    placed = split_files(folder)
    (folder / "sub").mkdir()
    (folder / part(1, 2)).rename(folder / "sub" / part(1, 2))
    write_index(folder, {name: f"sub/{file}" if file == part(1, 2) else file for name, file in placed.items()})


def name_single(folder: Path) -> None:
    write_index(folder, dict.fromkeys(load_file(folder / WEIGHTS), WEIGHTS))


def total(count: Callable[[Path], object]) -> Break:
    def change(folder: Path) -> None:
        split_files(folder)
        set_total(folder, count(folder))

    return change


def nbytes(folder: Path) -> int:
    return open_folder(Folder(folder)).nbytes


SILENT: dict[str, Break] = {
    "several files": lambda folder: split_files(folder, 4),
    "a cache of links": link_cache,
    "a link to another disk": link_disk,
    "an overlay that the index does not name": lay_overlay,
    "what lies beside": lay_others,
    "numbers without zeros": number("model-{0}-of-3.safetensors"),
    "a count of six digits": number("model-{0:05}-of-000003.safetensors"),
    "numbers from zero": number("model-{1:05}-of-00003.safetensors"),
    "names of one's own": number("layers.{0}.safetensors"),
    "an index of consolidated files": number("consolidated-{0:05}-of-00003.safetensors"),
    "an index that leaves a number out": leave_gap,
    "files in a folder below": move_below,
    "an index of the one file": name_single,
    "a total of bytes": total(nbytes),
    "a total of whole files": total(lambda folder: sum(path.stat().st_size for path in folder.glob("model-*"))),
    "a total with a tied head": total(
        lambda folder: nbytes(folder) + open_folder(Folder(folder)).tensors["model.embed_tokens.weight"].nbytes
    ),
    "a total without a shared tensor": total(
        lambda folder: nbytes(folder) - open_folder(Folder(folder)).tensors["model.embed_tokens.weight"].nbytes
    ),
    "a total of nothing": total(lambda _: 0),
    "a total that is a float": total(lambda _: 7.0),
    "a total that is a text": total(lambda _: "7"),
}


@pytest.mark.parametrize("layout", SILENT)
@pytest.mark.parametrize("name", [DEMO.name, "gptq-4bit-g128-asym"])
def test_what_is_right_is_not_spoken_of(layout: str, name: str, broken: Callable[[str], Path]) -> None:
    folder = broken(name)
    SILENT[layout](folder)
    assert find(folder) == ()
    assert qload.validate(folder).tensors == qload.validate(DATA / name).tensors


@pytest.mark.parametrize("path", samples(), ids=lambda path: path.name)
def test_real_checkpoints_split_into_files_are_as_they_were(path: Path, tmp_path: Path) -> None:
    if not (path / WEIGHTS).exists():
        return
    folder = copy_checkpoint(path, tmp_path / path.name)
    whole = open_folder(Folder(folder)).findings
    split_files(folder)
    set_total(folder, nbytes(folder))
    assert open_folder(Folder(folder)).findings == whole


def test_the_index_says_which_copy_is_read(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    placed = split_files(folder)
    copy_norm(folder, placed)
    (finding,) = find(folder)
    assert (finding.severity, finding.expected) == (Severity.WARNING, f"only in {placed[NORM]}")
    assert finding.file != placed[NORM]
    (folder / INDEX).unlink()
    assert {each.severity for each in find(folder) if each.code == "QL008"} == {Severity.ERROR}


def test_a_set_that_is_not_read_is_named_with_the_one_that_is(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    add_consolidated(folder)
    (finding,) = find(folder)
    assert (finding.code, finding.file) == ("QL009", "consolidated.safetensors")
    assert WEIGHTS in finding.expected


def test_of_a_numbered_set_every_missing_file_is_named(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    split_files(folder, 5)
    for name in (INDEX, part(2, 5), part(5, 5)):
        (folder / name).unlink()
    missing = [finding for finding in open_folder(Folder(folder)).findings if finding.code == "QL005"]
    assert [(finding.file, finding.found) for finding in missing] == [(part(2, 5), "3 of 5"), (part(5, 5), "3 of 5")]


@pytest.mark.parametrize("count", ["99999", "999999999"])
def test_a_set_of_more_files_than_there_can_be_is_not_believed(count: str, broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    (folder / WEIGHTS).rename(folder / f"model-00001-of-{count}.safetensors")
    assert codes(folder) == ["QL007"]


def test_a_dangling_link_says_where_it_leads(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    link_nowhere(folder)
    (finding,) = find(folder)
    assert (finding.code, finding.file) == ("QL005", WEIGHTS)
    assert "../../blobs/0123" in finding.message


def test_what_leads_out_of_the_folder_is_not_opened(
    broken: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = broken(DEMO.name)
    placed = split_files(folder)
    names = ["../x.safetensors", "/etc/passwd", "sub/../../x", "a\0b/c", "\ud800/a"]
    write_index(folder, {**placed, **{f"a.{at}": name for at, name in enumerate(names)}})
    asked: list[str] = []
    size = Folder.size

    def ask(storage: Folder, name: str) -> int:
        asked.append(name)
        return size(storage, name)

    monkeypatch.setattr(Folder, "size", ask)
    found = [finding.file for finding in open_folder(Folder(folder)).findings if finding.code == "QL005"]
    assert sorted(found) == sorted(names)
    assert set(asked).isdisjoint(names)


def test_a_tensor_that_the_index_names_twice(broken: Callable[[str], Path]) -> None:
    """In different files: the same one twice is one."""
    folder = broken(DEMO.name)
    placed = split_files(folder)
    text = (folder / INDEX).read_text()
    same = text.replace('"weight_map": {', f'"weight_map": {{"{NORM}": "{placed[NORM]}", ')
    (folder / INDEX).write_text(same)
    assert find(folder) == ()
    (folder / INDEX).write_text(same.replace(f'"{NORM}": "{placed[NORM]}"', f'"{NORM}": "other"', 1))
    (finding,) = find(folder)
    assert (finding.code, finding.where, finding.file) == ("QL105", f"weight_map.{NORM}", INDEX)
    assert placed[NORM] in finding.expected


@pytest.mark.parametrize("code", [13, 5])
def test_a_file_that_cannot_be_read(code: int, broken: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = broken(DEMO.name)
    split_files(folder)
    read = Folder.read

    def refuse(storage: Folder, name: str, start: int, count: int) -> bytes:
        if name == part(1, 2):
            raise OSError(code, os.strerror(code))
        return read(storage, name, start, count)

    monkeypatch.setattr(Folder, "read", refuse)
    found = [finding for finding in find(folder) if finding.severity is Severity.ERROR]
    assert [(finding.code, finding.file) for finding in found] == [("QL013", part(1, 2))]
    assert os.strerror(code) in found[0].message


def test_many_tensors_are_read(tmp_path: Path) -> None:
    """Far more than any checkpoint has."""
    count = 200_000
    table = {f"a.{number}.b": byte_tensor(number, number + 1) for number in range(count)}
    header(table, bytes(count))(tmp_path)
    checkpoint = open_folder(Folder(tmp_path))
    assert len(checkpoint.tensors) == count
    assert [finding.code for finding in checkpoint.findings] == ["QL012"]


def test_names_with_control_characters_are_printed_escaped(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    header({"a\n\x1b[31m": byte_tensor(0, 2)}, bytes(2))(folder)
    (finding,) = find(folder)
    assert str(finding).isprintable()


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, 3, [], "pt", {"format": 3}, {"format": None}])
def test_metadata_is_what_safetensors_takes(metadata: object, tmp_path: Path) -> None:
    header({"__metadata__": metadata, "a": byte_tensor(0, 1)}, bytes(1))(tmp_path)
    found = {finding.code for finding in open_folder(Folder(tmp_path)).findings}
    try:
        load_file(tmp_path / WEIGHTS)
    except SafetensorError:
        assert "QL003" in found
    else:
        assert "QL003" not in found


def gguf_folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        shutil.copy(DATA / "autoround-gguf-q4_k_m" / "model.gguf", tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["mmproj-F16.gguf", "model-mmproj-f16.gguf", "imatrix.gguf", "README.md"])
def test_what_lies_beside_a_gguf_model_is_no_second_one(name: str, tmp_path: Path) -> None:
    folder = gguf_folder(tmp_path, "model-q4_k_m.gguf")
    (folder / name).write_bytes(b"GGUF")
    assert find(folder) == ()


def test_several_gguf_models_are_listed(tmp_path: Path) -> None:
    (finding,) = find(gguf_folder(tmp_path, "a-q4_0.gguf", "a-q8_0.gguf"))
    assert (finding.code, finding.found) == ("QL011", "a-q4_0.gguf, a-q8_0.gguf")


def test_every_missing_part_of_a_gguf_model_is_named(tmp_path: Path) -> None:
    found = find(gguf_folder(tmp_path, "a-00002-of-00003.gguf"))
    names = [("QL005", "a-00001-of-00003.gguf"), ("QL005", "a-00003-of-00003.gguf")]
    assert [(finding.code, finding.file) for finding in found] == names


def test_a_gguf_file_can_be_a_pointer_a_pipe_or_a_link_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    makers: dict[str, Callable[[], Any]] = {
        "QL002": lambda: path.write_text(POINTER),
        "QL005": lambda: path.symlink_to("../blobs/0"),
        "QL013": lambda: os.mkfifo(path),
    }
    for code, make in makers.items():
        make()
        assert codes(tmp_path) == [code]
        path.unlink()
