"""What is found in a repository is what is found in the folder that it is downloaded into."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from breaking import Break, cut, drop
from edits import INDEX, WEIGHTS, edit_config, split_files, write_index
from hubs import COMMIT, Hub
from samples import DATA, DEMO, samples

import qload
from qload.errors import QloadError
from qload.validation import Report

FIRST, SECOND, LAST = (f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3))


def hold(remote: Report, local: Report) -> None:
    assert remote == replace(local, path=remote.path)


@pytest.mark.parametrize("path", samples(), ids=lambda path: path.name)
def test_a_repository_validates_as_its_folder_does(path: Path, serve: Callable[..., Hub]) -> None:
    serve(model=path)
    remote = qload.validate("hf:org/model")
    hold(remote, qload.validate(path))
    file = f"/{path.name}" if remote.path.suffix == ".gguf" else ""
    assert str(remote.path) == f"hf:org/model@{COMMIT}{file}"


@pytest.mark.parametrize("path", samples()[::7], ids=lambda path: path.name)
def test_a_repository_is_planned_as_its_folder_is(path: Path, serve: Callable[..., Hub]) -> None:
    serve(model=path)
    remote = qload.plan_ranks("hf:org/model@main", [1, 2])
    assert remote == replace(qload.plan_ranks(path, [1, 2]), path=remote.path)


def lose(*names: str) -> Break:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def make_pointer(name: str) -> Break:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456789\n"
    return lambda folder: (folder / name).write_text(text)


def misplace(folder: Path) -> None:
    """An index that names one file for all tensors."""
    table = json.loads((folder / INDEX).read_text())
    write_index(folder, dict.fromkeys(table["weight_map"], FIRST))


def outside(folder: Path) -> None:
    (folder / "sub").mkdir()
    shutil.move(folder / FIRST, folder / "sub" / FIRST)
    table = json.loads((folder / INDEX).read_text())
    names = {name: f"sub/{file}" if file == FIRST else file for name, file in table["weight_map"].items()}
    write_index(folder, names)


BROKEN: dict[str, Break] = {
    "a shard is missing": lose(FIRST),
    "the index is missing": lose(INDEX),
    "the index is no JSON": lambda folder: (folder / INDEX).write_text("{"),
    "the index is stale": misplace,
    "a shard is a pointer": make_pointer(LAST),
    "a shard is empty": lambda folder: (folder / LAST).write_bytes(b""),
    "a shard is truncated": lambda folder: (folder / LAST).write_bytes((folder / LAST).read_bytes()[:-9]),
    "a header is impossible": lambda folder: (folder / LAST).write_bytes((1 << 62).to_bytes(8, "little") + bytes(99)),
    "a header is no JSON": lambda folder: (folder / LAST).write_bytes((50).to_bytes(8, "little") + bytes(99)),
    "there is no config": lose("config.json"),
    "there are no weights": lose(FIRST, SECOND, LAST, INDEX),
    "the method is not known": lambda folder: edit_config(
        folder, lambda config: config["quantization_config"].update(quant_method="nope")
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_found_alike(
    case: str, broken: Callable[[str], Path], serve: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = broken(DEMO.name)
    split_files(folder, 3)
    BROKEN[case](folder)
    local = qload.validate(folder)
    assert local.findings
    for head in (1 << 18, 64):
        monkeypatch.setattr("qload.hub.repository.HEAD", head)
        serve(model=folder)
        hold(qload.validate("hf:org/model"), local)


def test_a_shard_in_a_folder_below_is_read_alike(broken: Callable[[str], Path], serve: Callable[..., Hub]) -> None:
    folder = broken(DEMO.name)
    split_files(folder, 3)
    outside(folder)
    serve(model=folder)
    hold(qload.validate("hf:org/model"), qload.validate(folder))


@pytest.mark.parametrize("breaks", [cut(5), cut(1000), drop("model.layers.1.mlp.up_proj.weight_scale")])
def test_one_broken_file_is_found_alike(
    breaks: Break, broken: Callable[[str], Path], serve: Callable[..., Hub]
) -> None:
    folder = broken(DEMO.name)
    breaks(folder)
    serve(model=folder)
    local = qload.validate(folder)
    assert local.findings
    hold(qload.validate("hf:org/model"), local)


def test_pickled_weights_are_found_alike(broken: Callable[[str], Path], serve: Callable[..., Hub]) -> None:
    folder = broken(DEMO.name)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    hub = serve(model=folder)
    hold(qload.validate("hf:org/model"), qload.validate(folder))
    assert hub.asked("pytorch_model.bin") == []


@pytest.fixture
def quantizations(tmp_path: Path) -> Path:
    """A repository as those who make several GGUF files of one model fill it."""
    source = DATA / "autoround-gguf-q4_k_m" / "model.gguf"
    (tmp_path / "Q4_0").mkdir()
    for name in ("a-Q8_0.gguf", "a-Q4_K_M.gguf", "mmproj-a.gguf", "Q4_0/a.gguf"):
        shutil.copy(source, tmp_path / name)
    return tmp_path


def test_of_several_gguf_files_one_is_to_be_named(quantizations: Path, serve: Callable[..., Hub]) -> None:
    hub = serve(model=quantizations)
    (finding,) = qload.validate("hf:org/model").findings
    assert finding.code == "QL011"
    assert finding.found == "a-Q4_K_M.gguf, a-Q8_0.gguf"
    for name in ("a-Q8_0.gguf", "Q4_0/a.gguf"):
        for address in (f"hf:org/model/{name}@main", f"hf:org/model@{COMMIT}/{name}", f"hf:org/model/{name}"):
            remote = qload.validate(address)
            hold(remote, qload.validate(quantizations / name))
            assert str(remote.path) == f"hf:org/model@{COMMIT}/{name}"
            assert qload.validate(remote.path) == remote
    assert {request.name for request in hub.requests} == {"api", "a-Q8_0.gguf", "Q4_0/a.gguf"}


def test_a_folder_of_a_repository_is_a_checkpoint(serve: Callable[..., Hub], quantizations: Path) -> None:
    shutil.copytree(DEMO, quantizations / "language" / "model")
    serve(model=quantizations)
    remote = qload.validate("hf:org/model/language/model@main")
    hold(remote, qload.validate(DEMO))
    assert str(remote.path) == f"hf:org/model@{COMMIT}/language/model"
    hold(qload.validate(remote.path), remote)
    assert qload.validate("hf:org/model/Q4_0/").method == "gguf"


def test_a_revision_may_have_slashes(serve: Callable[..., Hub]) -> None:
    serve(model=DEMO).revisions = ("main", "refs/pr/1")
    assert str(qload.validate("hf:org/model@refs/pr/1").path) == f"hf:org/model@{COMMIT}"
    assert str(qload.validate(Path("hf:org/model/model.safetensors@refs/pr/1")).path).startswith("hf:org/model@")


def test_it_is_not_loaded_from_there(serve: Callable[..., Hub]) -> None:
    hub = serve(model=DEMO)
    for address, command in {
        "hf:org/model": "hf download org/model`",
        "hf:org/model@refs/pr/1": "hf download org/model --revision refs/pr/1`",
        "hf:org/model/a/m.gguf@main": "hf download org/model a/m.gguf --revision main`",
    }.items():
        with pytest.raises(QloadError, match="not loaded from there") as caught:
            qload.load(Path(address))
        assert command in caught.value.remedy
    assert hub.requests == []
