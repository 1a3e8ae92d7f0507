"""Hubs that misbehave: each in its way is one clear line, soon, and in little memory."""

import email.utils
import json
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from edits import split_files
from hubs import Behaviour, Hub, Reply, after, cut, drip, drip_headers, flood, ignore_range, stall
from huggingface_hub import constants
from samples import DEMO

import qload
from qload.errors import QloadError
from qload.hub import Limits, open_repository

WEIGHTS = "model.safetensors"
PAUSE = 0.4
BOUND = 12.0
"""Seconds: many times what is allowed, for the machine may be busy."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qload.hub.server.Limits", partial(Limits, pause=PAUSE, wait=0.05, rate=1 << 20))


@pytest.fixture
def hub(serve: Callable[..., Hub]) -> Hub:
    return serve(model=DEMO)


def answer(status: int, body: bytes = b"", length: int | None = None, **headers: str) -> Behaviour:
    def behave(reply: Reply) -> None:
        reply.head(status, len(body) if length is None else length, **headers)
        reply.put(body)
        reply.close_connection = True

    return behave


def shift(reply: Reply) -> None:
    """Another range than the one that was asked for."""
    start, stop = reply.span
    reply.head(206, stop - start, Content_Range=f"bytes {start + 1}-{stop}/{len(reply.data)}")
    reply.put(reply.data[start + 1 : stop + 1])


def shorten(reply: Reply) -> None:
    """A range that says of itself that it is shorter."""
    start, _ = reply.span
    reply.head(206, 100, Content_Range=f"bytes {start}-{start + 99}/{len(reply.data)}")
    reply.put(reply.data[start : start + 100])


def stop_early(reply: Reply) -> None:
    """Fewer bytes than the range that it says, without a length."""
    start, stop = reply.span
    reply.head(206, Transfer_Encoding="chunked", Content_Range=f"bytes {start}-{stop - 1}/{len(reply.data)}")
    reply.put_chunk(reply.data[start : start + 100])
    reply.put(b"0\r\n\r\n")


def name_no_range(reply: Reply) -> None:
    start, stop = reply.span
    reply.head(206, stop - start)
    reply.put(reply.data[start:stop])


def resize(reply: Reply) -> None:
    """A file that has shrunk since it was listed."""
    reply.data = reply.data[:-10]
    start, stop = reply.span
    reply.span = (start, min(stop, len(reply.data)))
    reply.give()


def redirect(location: str) -> Behaviour:
    return lambda reply: reply.head(302, 0, Location=location)


def redirect_and_flood(reply: Reply) -> None:
    reply.head(302, Transfer_Encoding="chunked", Location="/elsewhere")
    while True:
        reply.put_chunk(bytes(1 << 16))


FILES: dict[str, tuple[Behaviour, str]] = {
    "another range": (shift, "answers with another range (expected bytes 0-262143, found bytes 1-262144/"),
    "a shorter range": (shorten, "another range (expected bytes 0-262143, found bytes 0-99/"),
    "a range without its place": (name_no_range, "answers with a part of the file, and does not say which"),
    "an answer that stops": (stop_early, "the answer ends after 100 of 262144 bytes"),
    "a connection that is cut": (cut, "the connection failed (peer closed connection"),
    "a stall": (stall, "the server sent nothing for 0.4 s"),
    "dripping": (drip, "the server is too slow"),
    "dripping headers": (drip_headers, "the server is too slow"),
    "a file that shrank": (resize, "the server's file is of another size"),
    "no such range": (answer(416), "the server has fewer bytes of it than the repository lists"),
    "not found": (answer(404), "127.0.0.1 answers 404 Not Found"),
    "an expired signature": (answer(403), "127.0.0.1 answers 403 Forbidden"),
    "too many requests": (answer(429), "127.0.0.1 answers 429 Too Many Requests"),
    "a long wait": (answer(503, Retry_After="3600"), "503 Service Unavailable, and asks to wait for 3600 s"),
    "a limit": (
        answer(429, RateLimit='"resolvers";r=0;t=250'),
        "429 Too Many Requests, and asks to wait for 250 s",
    ),
    "a wait until a date": (
        answer(503, Retry_After=email.utils.formatdate(4e9)),
        "503 Service Unavailable, and asks to wait for ",
    ),
    "a web page": (answer(200, b"<html>Sign in</html>", Content_Type="text/html"), "answers with a web page"),
    "no content": (answer(204), "127.0.0.1 answers 204 No Content"),
    "nothing": (lambda reply: setattr(reply, "close_connection", True), "the connection failed ("),
    "no HTTP": (lambda reply: reply.put(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "the connection failed ("),
    "packed bytes": (
        answer(200, b"not gzip", Content_Encoding="gzip", Content_Type="text/plain"),
        "the request failed (",
    ),
    "redirects without end": (lambda reply: redirect(reply.path)(reply), "redirects more than 10 times"),
    "a redirect nowhere": (redirect("http://nowhere:port"), "redirects to what is no address"),
    "a redirect to another protocol": (redirect("file:///etc/passwd"), "the connection failed ("),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_read_is_one_finding(case: str, hub: Hub) -> None:
    behaviour, message = FILES[case]
    hub.behaviours[WEIGHTS] = behaviour
    if "redirects" in message:
        hub.resolving = lambda reply: behaviour(reply) if reply.name == WEIGHTS else reply_whole(hub, reply)
    start = time.monotonic()
    (finding,) = qload.validate("hf:org/model").findings
    assert time.monotonic() - start < BOUND
    assert (finding.code, finding.file) == ("QL013", WEIGHTS)
    assert message in str(finding)
    assert "signature" not in str(finding)
    assert len(hub.asked(WEIGHTS)) <= 12


def reply_whole(hub: Hub, reply: Reply) -> None:
    hub._give_file(reply, DEMO / reply.name, reply.name)


def test_redirects_are_not_read(hub: Hub) -> None:
    hub.resolving = lambda reply: redirect_and_flood(reply) if reply.name == WEIGHTS else reply_whole(hub, reply)
    tracemalloc.start()
    (finding,) = qload.validate("hf:org/model").findings
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "404" in str(finding)
    assert peak < 1 << 25


@pytest.mark.parametrize(
    "behaviour",
    [answer(503), answer(429, Retry_After="0"), cut, stop_early, answer(500), stall],
    ids=["503", "429", "cut", "short", "500", "stall"],
)
def test_what_passes_is_tried_again(behaviour: Behaviour, hub: Hub) -> None:
    hub.behaviours[WEIGHTS] = after(1, behaviour)
    hub.api = after(1, answer(503))
    assert qload.validate("hf:org/model").ok


def test_what_is_asked_for_again_waits_as_long_as_it_was_told_to(hub: Hub) -> None:
    hub.behaviours[WEIGHTS] = after(1, answer(429, Retry_After="1"))
    start = time.monotonic()
    assert qload.validate("hf:org/model").ok
    assert time.monotonic() - start > 1


def test_of_a_server_that_ignores_ranges_no_more_is_read_than_needed(tmp_path: Path, serve: Callable[..., Hub]) -> None:
    (tmp_path / "large.safetensors").write_bytes(bytes(range(256)) * (1 << 18))
    hub = serve(model=tmp_path)
    hub.behaviours = {"large.safetensors": ignore_range}
    repository, _ = open_repository("hf:org/model")
    assert repository.read("large.safetensors", 3, 100) == bytes(range(3, 103))
    # What a connection holds on its way is sent, too.
    assert sum(request.sent for request in hub.asked("large.safetensors")) < 1 << 24


def test_a_server_that_ignores_ranges_gives_no_late_bytes(hub: Hub) -> None:
    hub.behaviours = {WEIGHTS: ignore_range}
    repository, _ = open_repository("hf:org/model")
    data = (DEMO / WEIGHTS).read_bytes()
    assert repository.read(WEIGHTS, 1000, 300_000) == data[1000:301_000]
    with pytest.raises(OSError, match="the server ignores ranges; byte 500000 cannot be read"):
        repository.read(WEIGHTS, 500_000, 10)


@pytest.mark.parametrize("length", [1 << 62, (1 << 64) - 1, 100_000_000])
def test_an_impossible_header_takes_no_memory(
    length: int, broken: Callable[[str], Path], serve: Callable[..., Hub]
) -> None:
    folder = broken(DEMO.name)
    (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + bytes(1 << 20))
    hub = serve(model=folder)
    hub.sizes[WEIGHTS] = 1 << 62
    tracemalloc.start()
    (finding,) = qload.validate("hf:org/model").findings
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert finding.code in ("QL003", "QL013")
    assert peak < 1 << 24


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "api"])
def test_a_body_that_never_ends_takes_little_memory_and_time(
    name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qload.hub.server.MAX_DOCUMENT", 1 << 20)
    hub.behaviours[name] = flood
    hub.api = flood if name == "api" else Reply.give
    start = time.monotonic()
    tracemalloc.start()
    try:
        outcome = str(qload.validate("hf:org/model").findings)
    except QloadError as error:
        outcome = str(error)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcome != "()"
    assert peak < 1 << 25
    assert time.monotonic() - start < BOUND


@pytest.mark.parametrize(
    "behaviour", [drip, drip_headers, stall, answer(503)], ids=lambda behaviour: behaviour.__name__
)
def test_many_files_take_no_longer_than_a_few(
    behaviour: Behaviour, broken: Callable[[str], Path], serve: Callable[..., Hub]
) -> None:
    """Where some had no answer, the others are not asked for."""
    folder = broken(DEMO.name)
    files = set(split_files(folder, 50).values())
    hub = serve(model=folder)
    hub.behaviours = dict.fromkeys(files, behaviour)
    start = time.monotonic()
    findings = qload.validate("hf:org/model").findings
    assert time.monotonic() - start < BOUND
    assert {finding.file for finding in findings if finding.code == "QL013"} == files
    assert any("others had no answer" in str(finding) for finding in findings)


def test_sizes_that_the_hub_does_not_say_are_not_guessed(hub: Hub) -> None:
    hub.sizes = {WEIGHTS: None}
    (finding,) = qload.validate("hf:org/model").findings
    assert (finding.code, finding.file) == ("QL013", WEIGHTS)
    assert "the hub does not say how long it is" in str(finding)


@pytest.mark.parametrize("size", [8, 100_000, 1_400_000])
def test_a_size_that_is_not_the_files_is_found(size: int, hub: Hub) -> None:
    hub.sizes = {WEIGHTS: size}
    (finding,) = qload.validate("hf:org/model").findings
    assert f"of another size (expected {size} bytes, found {(DEMO / WEIGHTS).stat().st_size})" in str(finding)


def say(change: Callable[[dict[str, Any]], object]) -> Behaviour:
    def behave(reply: Reply) -> None:
        described = json.loads(reply.data)
        change(described)
        reply.data = json.dumps(described).encode()
        reply.span = (0, len(reply.data))
        reply.give()

    return behave


REPOSITORIES: dict[str, tuple[str, Behaviour, str]] = {
    "no such repository": ("hf:org/nothing", Reply.give, "there is no such repository, or it is private"),
    "no such revision": ("hf:org/model@v2", Reply.give, "the repository has no such revision"),
    "no such file": ("hf:org/model/nothing.gguf", Reply.give, "the repository has no such file or folder"),
    "a refused token": (
        "hf:org/model",
        lambda reply: reply.refuse(401, "", "Invalid credentials in Authorization header"),
        "the hub answers 401",
    ),
    "a forbidden one": ("hf:org/model", answer(403), "there is no such repository, or it is private"),
    "a limit": ("hf:org/model", answer(429, Retry_After="300"), "the hub limits requests"),
    "an error": ("hf:org/model", answer(500), "the hub answers 500 Internal Server Error"),
    "dripping": ("hf:org/model", drip, "the server is too slow"),
    "dripping headers": ("hf:org/model", drip_headers, "the server is too slow"),
    "a stall": ("hf:org/model", stall, "the server sent nothing for 0.4 s"),
    "a web page": ("hf:org/model", answer(200, b"<html>"), "the answer is no description of a repository"),
    "no commit": ("hf:org/model", say(lambda said: said.update(sha="main/..")), "no description of a repository"),
    "a list of numbers": (
        "hf:org/model",
        say(lambda said: said.update(siblings=[3])),
        "no description of a repository",
    ),
    "redirects": ("hf:org/model", redirect("/api/models/org/model"), "redirects more than 10 times"),
}


@pytest.mark.parametrize("case", REPOSITORIES)
def test_a_repository_that_cannot_be_read_is_one_error(case: str, hub: Hub) -> None:
    address, hub.api, message = REPOSITORIES[case]
    start = time.monotonic()
    with pytest.raises(QloadError) as caught:
        qload.validate(address)
    assert time.monotonic() - start < BOUND
    assert caught.value.where == address
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gated_repository_is_one_error(hub: Hub) -> None:
    """Its files are listed to anyone."""
    hub.gated = True
    with pytest.raises(QloadError, match="the repository is gated") as caught:
        qload.validate("hf:org/model")
    assert "hf auth login" in caught.value.remedy


def test_a_hub_that_is_not_there_is_one_error(hub: Hub) -> None:
    hub.main.shutdown()
    hub.main.server_close()
    with pytest.raises(QloadError, match="the repository cannot be read") as caught:
        qload.validate("hf:org/model")
    assert hub.endpoint in caught.value.remedy


def test_nothing_is_asked_for_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(QloadError, match="in offline mode") as caught:
        qload.validate("hf:org/model")
    assert "HF_HUB_OFFLINE" in caught.value.remedy
    assert hub.requests == []


def test_a_repository_that_moved_is_read_where_it_is(hub: Hub) -> None:
    """The hub redirects from its old name, with the token, and says its new one."""
    hub.gated, hub.token = True, "hf_secret"
    describe = hub._describe

    def move(reply: Reply, repository: str, revision: str) -> None:
        if repository == "org/old":
            reply.head(307, 0, Location=f"/api/models/org/model/revision/{revision}?blobs=true")
        else:
            describe(reply, repository, revision)

    hub._describe = move  # type: ignore[method-assign]
    assert qload.validate("hf:org/old").ok
    assert str(qload.validate("hf:org/old@main").path).startswith("hf:org/old@")
