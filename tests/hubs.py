"""A hub of this machine: it answers as huggingface.co does, from folders, and misbehaves when told to."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STORED_ELSEWHERE = (".safetensors", ".gguf", ".bin")
_API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_RESOLVE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Reply(BaseHTTPRequestHandler):
    """One request, and the ways to answer it."""

    protocol_version = "HTTP/1.1"
    server: "_Server"
    data = b""
    span = (0, 0)
    name = ""
    sent = 0

    def do_GET(self) -> None:
        hub = self.server.hub
        with hub.lock:
            hub.busy += 1
            hub.busiest = max(hub.busiest, hub.busy)
        self.sent = 0
        try:
            hub.answer(self, is_cdn=self.server is hub.cdn)
        finally:
            with hub.lock:
                hub.busy -= 1
                hub.requests.append(
                    Request(self.server is hub.cdn, self.name, self.span, self.sent, dict(self.headers))
                )

    def head(self, status: int, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.flush()

    def put(self, data: bytes) -> None:
        if self.server.hub.is_closing:
            raise ConnectionAbortedError
        self.wfile.write(data)
        self.wfile.flush()
        self.sent += len(data)

    def put_chunk(self, data: bytes) -> None:
        """A piece of a body whose length nobody said."""
        self.put(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def give(self) -> None:
        """Answer as asked."""
        start, stop = self.span
        part = self.data[start:stop]
        if "Range" in self.headers and not part:
            self.head(416, 0, Content_Range=f"bytes */{len(self.data)}")
        elif "Range" in self.headers:
            self.head(206, len(part), Content_Range=f"bytes {start}-{start + len(part) - 1}/{len(self.data)}")
            self.put(part)
        else:
            self.head(200, len(part))
            self.put(part)

    def refuse(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        self.head(status, 0, **{**({"X_Error_Code": code, "X_Error_Message": message} if code else {}), **headers})

    def log_message(self, *_: object) -> None:
        pass


Behaviour = Callable[[Reply], None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: "Hub"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up."""


@dataclass(frozen=True)
class Request:
    """One that was answered: by the hub or its CDN, for which file and bytes of it, and the bytes that were sent."""

    is_cdn: bool
    name: str
    span: tuple[int, int]
    sent: int
    headers: dict[str, str]


@dataclass
class Hub:
    """Repositories, each a folder under revisions, and how to misbehave: for all of a kind, or for one file."""

    repositories: dict[str, Path]
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    token: str = ""
    sizes: dict[str, int | None] = field(default_factory=dict)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    api: Behaviour = Reply.give
    resolving: Behaviour | None = None
    requests: list[Request] = field(default_factory=list)
    is_closing: bool = False
    busy: int = 0
    busiest: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.main = _Server(("127.0.0.1", 0), Reply)
        self.cdn = _Server(("127.0.0.1", 0), Reply)
        self.main.hub = self.cdn.hub = self

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.main.server_port}"

    def answer(self, reply: Reply, *, is_cdn: bool) -> None:
        url = urlsplit(reply.path)
        if is_cdn:
            (name,) = parse_qs(url.query)["file"]
            self._give_file(reply, Path(unquote(url.path)), name)
        elif match := _API.fullmatch(url.path):
            self._describe(reply, match["repository"], unquote(match["revision"] or "main"))
        elif match := _RESOLVE.fullmatch(url.path):
            self._resolve(reply, match["repository"], match["revision"], unquote(match["path"]))
        else:
            reply.refuse(404)

    def _describe(self, reply: Reply, repository: str, revision: str) -> None:
        reply.name = "api"
        folder = self.repositories.get(repository)
        if folder is None:
            reply.refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in (*self.revisions, COMMIT):
            reply.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            files = [self._list(path, path.relative_to(folder).as_posix()) for path in list_files(folder)]
            reply.data = json.dumps({"id": repository, "sha": COMMIT, "siblings": files, "likes": 7}).encode()
            reply.span = (0, len(reply.data))
            self.api(reply)

    def _list(self, path: Path, name: str) -> dict[str, Any]:
        size = self.sizes.get(name, path.stat().st_size)
        listed: dict[str, Any] = {"rfilename": name, "size": size, "blobId": "0" * 40}
        if name.endswith(STORED_ELSEWHERE):
            listed["lfs"] = {"sha256": checksum(path), "size": size, "pointerSize": 135}
        return listed

    def _resolve(self, reply: Reply, repository: str, revision: str, name: str) -> None:
        reply.name = name
        path = self.repositories.get(repository, Path("none")) / name
        is_known = self.token and reply.headers.get("authorization") == f"Bearer {self.token}"
        if self.gated and not is_known:
            reply.refuse(401, "GatedRepo", "Access to model is restricted. You must have access to it")
        elif revision != COMMIT or not path.is_file():
            reply.refuse(404, "EntryNotFound", "Entry not found")
        elif self.resolving is not None:
            self.resolving(reply)
        elif name.endswith(STORED_ELSEWHERE):
            location = f"http://127.0.0.1:{self.cdn.server_port}{path}?file={name}&signature=secret"
            reply.head(302, 5, Location=location)
            reply.put(b"Found")
        else:
            self._give_file(reply, path, name)

    def _give_file(self, reply: Reply, path: Path, name: str) -> None:
        reply.name, reply.data = name, path.read_bytes()
        match = _RANGE.fullmatch(reply.headers.get("Range", ""))
        reply.span = (int(match[1]), int(match[2]) + 1) if match else (0, len(reply.data))
        self.behaviours.get(name, Reply.give)(reply)

    def asked(self, name: str) -> list[Request]:
        """The requests for a file that were answered with some of it."""
        return [request for request in self.requests if request.name == name and request.sent != len(b"Found")]


def list_files(folder: Path) -> list[Path]:
    kept = (path for path in folder.rglob("*") if path.is_file())
    return sorted(kept)


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def run_hub(**repositories: Path) -> Iterator[Hub]:
    """A hub with repositories `org/NAME`, while it runs."""
    hub = Hub({f"org/{name.replace('_', '-')}": folder for name, folder in repositories.items()})
    threads = [threading.Thread(target=each.serve_forever, args=(0.01,), daemon=True) for each in (hub.main, hub.cdn)]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.is_closing = True
        for server, thread in zip((hub.main, hub.cdn), threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def after(count: int, first: Behaviour, then: Behaviour = Reply.give) -> Behaviour:
    """Behave in one way so many times, and then in another."""
    left = iter(range(count))
    return lambda reply: (first if next(left, None) is not None else then)(reply)


def drip(reply: Reply) -> None:
    """A byte at a time: never long without one, and never done."""
    start, stop = reply.span
    reply.head(206, stop - start, Content_Range=f"bytes {start}-{stop - 1}/{len(reply.data)}")
    for byte in reply.data[start:stop]:
        reply.put(bytes([byte]))
        time.sleep(0.05)


def drip_headers(reply: Reply) -> None:
    reply.wfile.write(b"HTTP/1.1 206 Partial Content\r\nX-Long: ")
    for _ in range(1000):
        reply.put(b"a")
        time.sleep(0.05)


def stall(reply: Reply) -> None:
    start, stop = reply.span
    reply.head(206, stop - start, Content_Range=f"bytes {start}-{stop - 1}/{len(reply.data)}")
    reply.put(reply.data[start : start + 10])
    time.sleep(2)


def flood(reply: Reply) -> None:
    """A body that never ends."""
    reply.head(200, Transfer_Encoding="chunked")
    while True:
        reply.put_chunk(bytes(1 << 16))


def cut(reply: Reply) -> None:
    """Hang up in the middle."""
    start, stop = reply.span
    reply.head(206, stop - start, Content_Range=f"bytes {start}-{stop - 1}/{len(reply.data)}")
    reply.put(reply.data[start : start + 100])
    reply.close_connection = True


def ignore_range(reply: Reply) -> None:
    reply.head(200, len(reply.data))
    for start in range(0, len(reply.data), 1 << 14):
        reply.put(reply.data[start : start + (1 << 14)])
