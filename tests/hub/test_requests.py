"""What is asked of the hub: headers, in few requests that run together, and the token stays with it."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from edits import INDEX, split_files
from hubs import COMMIT, Hub, Reply, checksum
from samples import DATA, DEMO, samples

import qload
from qload.checkpoint import Storage
from qload.hub import Limits, open_repository

SHARDS = 24


@pytest.fixture
def sharded(broken: Callable[[str], Path]) -> Path:
    folder = broken(DEMO.name)
    split_files(folder, SHARDS)
    return folder


def give_late(reply: Reply) -> None:
    time.sleep(0.3)
    reply.give()


def header_length(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


@pytest.mark.parametrize("head", [64, 2048, 1 << 18])
@pytest.mark.parametrize("path", samples()[::5], ids=lambda path: path.name)
def test_headers_and_json_cross_the_wire_alone(
    path: Path, head: int, serve: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qload.hub.repository.HEAD", head)
    hub = serve(model=path)
    qload.validate("hf:org/model")
    for file in {request.name for request in hub.requests} - {"api"}:
        asked = hub.asked(file)
        size = (path / file).stat().st_size
        if file.endswith(".safetensors"):
            assert sum(request.sent for request in asked) <= max(head, header_length(path / file))
            assert len(asked) <= 3
        elif file.endswith(".json"):
            assert sum(request.sent for request in asked) == size
            assert len(asked) <= 2
        else:
            assert sum(request.sent for request in asked) <= 1 << 22
    assert len(hub.asked("api")) == 1


def test_a_checkpoint_costs_a_request_for_each_file(sharded: Path, serve: Callable[..., Hub]) -> None:
    hub = serve(model=sharded)
    assert qload.validate("hf:org/model").ok
    names = sorted(request.name for request in hub.requests if not request.is_cdn)
    shards = [path.name for path in sharded.glob("*.safetensors")]
    assert names == sorted(["api", "config.json", INDEX, *shards])
    assert sorted(request.name for request in hub.requests if request.is_cdn) == sorted(shards)


def test_what_is_listed_is_not_asked_for(serve: Callable[..., Hub], tmp_path: Path) -> None:
    """The weights' sizes and checksums, and files that nobody reads."""
    shutil.copytree(DEMO, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("many words")
    (tmp_path / "model" / "consolidated.safetensors").write_bytes(bytes(100))
    hub = serve(model=tmp_path / "model")
    repository, file = open_repository("hf:org/model@main")
    assert (file, repository.commit, repository.address.revision) == ("", COMMIT, "main")
    assert repository.checksums["model.safetensors"] == checksum(DEMO / "model.safetensors")
    assert "config.json" not in repository.checksums
    assert repository.size("README.md") == 10
    storage: Storage = repository
    assert storage.place == f"hf:org/model@{COMMIT}"
    qload.validate("hf:org/model")
    assert {request.name for request in hub.requests} == {"api", "config.json", "model.safetensors"}


def test_everything_is_read_at_one_commit(serve: Callable[..., Hub], sharded: Path) -> None:
    """The hub of the tests gives files at the commit alone; the branch may have moved on."""
    hub = serve(model=sharded)
    repository, _ = open_repository("hf:org/model@main")
    hub.revisions = ()
    assert repository.read("config.json", 0, 10) == (sharded / "config.json").read_bytes()[:10]


def test_any_range_is_read_as_it_is_stored(serve: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qload.hub.repository.HEAD", 1000)
    serve(model=DEMO)
    data = (DEMO / "model.safetensors").read_bytes()
    repository, _ = open_repository("hf:org/model")
    for start, count in [(0, 8), (8, 500), (8, 5000), (900, 200), (5008, 10), (7000, 10), (0, 0), (3, 6000)]:
        assert repository.read("model.safetensors", start, count) == data[start : start + count]
    assert repository.read("model.safetensors", len(data) - 5, 100) == data[-5:]
    assert repository.read("model.safetensors", len(data) + 5, 100) == b""


def test_the_first_bytes_of_many_files_are_asked_for_together(sharded: Path, serve: Callable[..., Hub]) -> None:
    hub = serve(model=sharded)
    hub.behaviours = {path.name: give_late for path in sharded.glob("*.safetensors")}
    assert qload.validate("hf:org/model").ok
    assert 8 < hub.busiest <= 2 * 16


def test_only_so_many_are_on_their_way(
    sharded: Path, serve: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qload.hub.repository.AHEAD", 3)
    hub = serve(model=sharded)
    hub.behaviours = dict.fromkeys((path.name for path in sharded.glob("*.safetensors")), give_late)
    qload.validate("hf:org/model")
    # The server is busy for a moment longer than whoever has its answer.
    assert 1 < hub.busiest <= 2 * 3


def test_what_is_kept_is_bounded(sharded: Path, serve: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qload.hub.repository.KEPT", 3000)
    serve(model=sharded)
    repository, _ = open_repository("hf:org/model")
    for path in sorted(sharded.glob("*.safetensors")):
        length = header_length(path)
        assert repository.read(path.name, 0, length) == path.read_bytes()[:length]
        assert sum(map(len, repository._kept.values())) <= 3000


def test_the_token_goes_to_the_hub_alone(serve: Callable[..., Hub]) -> None:
    hub = serve(model=DEMO)
    hub.gated, hub.token = True, "hf_secret"
    assert qload.validate("hf:org/model").ok
    sent = {
        request.is_cdn: request.headers.get("Authorization", request.headers.get("authorization"))
        for request in hub.requests
    }
    assert sent == {True: None, False: "Bearer hf_secret"}


def test_of_a_gguf_file_the_header_is_read_in_windows(serve: Callable[..., Hub]) -> None:
    folder = DATA / "autoround-gguf-q4_k_m"
    hub = serve(model=folder)
    assert qload.validate("hf:org/model").ok
    assert {request.name for request in hub.requests} == {"api", "model.gguf"}
    assert sum(request.sent for request in hub.asked("model.gguf")) <= (folder / "model.gguf").stat().st_size


def test_no_thread_is_left(serve: Callable[..., Hub], sharded: Path) -> None:
    serve(model=sharded)
    qload.validate("hf:org/model")
    for thread in threading.enumerate():
        if thread.name == "qload-errand":
            thread.join(5)
            assert not thread.is_alive()


def test_limits_follow_the_time_that_downloads_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 20)
    assert Limits().pause == 20
    assert Limits().allow((1 << 18) * 10) == 90
