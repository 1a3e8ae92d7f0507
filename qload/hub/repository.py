"""A repository of the hub as a place where the files of a checkpoint lie."""

import errno
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock

from huggingface_hub import hf_hub_url

from qload.checkpoint.folder import CONFIG
from qload.checkpoint.weights import find_weights
from qload.errors import QloadError
from qload.hub.addresses import PREFIX, Address, read_address
from qload.hub.answers import Span, TransferError
from qload.hub.errands import Errand
from qload.hub.limits import Limits
from qload.hub.server import Server
from qload.hub.tree import Tree, read_tree, refuse

HEAD = 1 << 18
"""The bytes that the first request for a file asks for: nearly every header is shorter."""
AHEAD = 16
"""The files whose first bytes are on their way at once."""
KEPT = 1 << 26
"""The bytes that are kept, of the beginnings of the files that were read last."""
_WEIGHTS = ".safetensors"


class Repository:
    """A repository, or a folder in it, at the commit that its revision stood for when it was opened.

    `address` is what the user called it; `checksums` are the published SHA-256 of the files that git-LFS stores.
    Reading raises TransferError, which is an OSError, where a file cannot be read, and QloadError where none can.
    """

    def __init__(self, server: Server, address: Address, tree: Tree, folder: str = "") -> None:
        self.address = address
        self.commit = tree.commit
        self._server, self._tree, self._folder = server, tree, folder
        self._lock = Lock()
        self._waiting: dict[str, None] = {}
        self._begun: dict[str, Errand[bytes]] = {}
        self._kept = OrderedDict[str, bytes]()

    @property
    def place(self) -> str:
        below = f"/{self._folder.rstrip('/')}" if self._folder else ""
        return f"{PREFIX}{self.address.repository}@{self.commit}{below}"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the files and folders that lie in it."""
        inside = (path[len(self._folder) :] for path in self._tree.sizes if path.startswith(self._folder))
        return tuple(sorted({path.partition("/")[0] for path in inside}))

    @cached_property
    def checksums(self) -> Mapping[str, str]:
        """The SHA-256 of files, by their names, in hexadecimal digits."""
        start = len(self._folder)
        return {path[start:]: sha for path, sha in self._tree.checksums.items() if path.startswith(self._folder)}

    def size(self, name: str) -> int:
        """The bytes of a file, as the repository lists them: nothing is asked."""
        path = self._folder + name
        if path not in self._tree.sizes:
            number = errno.EISDIR if name in self.names else errno.ENOENT
            raise OSError(number, os.strerror(number), name)
        size = self._tree.sizes[path]
        if size is None or size < 0:
            raise TransferError("the hub does not say how long it is")
        return size

    def prefetch(self, names: Iterable[str]) -> None:
        """Begin to read the first bytes of files, which will be read in this order: so many of them at a time."""
        with self._lock:
            self._waiting.update(dict.fromkeys(names))
            self._begin_waiting()

    def read(self, name: str, start: int, count: int) -> bytes:
        """Bytes of a file, fewer only where it ends. What goes on where its known beginning ends is added to that."""
        size = self.size(name)
        stop = min(start + count, size)
        if start >= stop:
            return b""
        known = self._find_beginning(name)
        if stop <= len(known):
            return known[start:stop]
        if start > len(known):
            return self._fetch(name, start, stop)
        known += self._fetch(name, len(known), max(stop, min(HEAD, size)))
        self._keep(name, known)
        return known[start:stop]

    def _fetch(self, name: str, start: int, stop: int) -> bytes:
        return self._wait(self._begin(name, start, stop))

    def _begin(self, name: str, start: int, stop: int) -> Errand[bytes]:
        path = self._folder + name
        url = hf_hub_url(self._tree.repository, path, revision=self.commit, endpoint=self._server.endpoint)
        return self._server.begin(url, Span(start, stop, self.size(name)))

    def _wait(self, errand: Errand[bytes]) -> bytes:
        try:
            return self._server.wait(errand)
        except TransferError as error:
            if error.status in (401, 403):
                raise refuse(str(self.address), self._server.endpoint, error) from error
            raise

    def _find_beginning(self, name: str) -> bytes:
        """What is known of a file's first bytes, and of those that are on their way."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
            errand = self._begun.pop(name, None)
            self._waiting.pop(name, None)
            self._begin_waiting()
        if errand is None:
            return b""
        data = self._wait(errand)
        self._keep(name, data)
        return data

    def _begin_waiting(self) -> None:
        while self._waiting and len(self._begun) < AHEAD:
            name = next(iter(self._waiting))
            del self._waiting[name]
            size = self._tree.sizes.get(self._folder + name)
            if size is not None and size > 0 and name not in self._kept and name not in self._begun:
                self._begun[name] = self._begin(name, 0, min(HEAD, size))

    def _keep(self, name: str, beginning: bytes) -> None:
        with self._lock:
            self._kept[name] = beginning
            self._kept.move_to_end(name)
            while sum(map(len, self._kept.values())) > KEPT:
                self._kept.popitem(last=False)


def open_repository(
    text: str | Path, *, endpoint: str | None = None, limits: Limits | None = None
) -> tuple[Repository, str]:
    """Open `hf:org/name@revision`; the file in it that was asked for comes second, empty where all of them were.

    The first bytes of its config and weight files are on their way when this returns. Raises QloadError where there is
    no such repository, revision or file, or none of it may be read.
    """
    address = read_address(str(text))
    server = Server(endpoint, limits)
    tree = read_tree(server, address)
    located = tree.locate(address.path)
    if located is None:
        raise QloadError(
            "the repository has no such file or folder",
            where=str(address),
            remedy="a revision stands behind an @: hf:org/name/file@revision",
        )
    folder, file = located
    repository = Repository(server, address, tree, folder)
    weights = () if file and not file.endswith(_WEIGHTS) else find_weights(repository).files
    if weights:
        repository.prefetch((CONFIG, *weights))
    return repository, file
