"""The list of a repository's files at one commit, with their sizes and checksums."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from qload.errors import QloadError
from qload.hub.addresses import Address
from qload.hub.answers import TransferError
from qload.hub.server import Server

_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class _Lfs(BaseModel):
    sha256: str | None = None


class _File(BaseModel):
    rfilename: str
    size: int | None = None
    lfs: _Lfs | None = None


class _Answer(BaseModel):
    """What the hub says of a repository; `size` is that of the file where it is stored elsewhere, not of a pointer."""

    id: str | None = None
    sha: str
    siblings: list[_File] = []


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a repository at `commit`: the bytes of each, None where the hub does not say, and the SHA-256 of
    those that git-LFS stores."""

    repository: str
    commit: str
    sizes: Mapping[str, int | None]
    checksums: Mapping[str, str]

    def locate(self, path: str) -> tuple[str, str] | None:
        """The folder, with its slash, and the file that a path means; None where there is neither."""
        if path in self.sizes:
            folder, slash, file = path.rpartition("/")
            return folder + slash, file
        folder = f"{path}/" if path else ""
        return (folder, "") if not path or any(name.startswith(folder) for name in self.sizes) else None


def read_tree(server: Server, address: Address) -> Tree:
    """Ask for a repository's files at the commit that a revision stands for now.

    HfApi would take an answer of any length, for any time. Raises QloadError where there is no such repository or
    revision, or the hub does not give it.
    """
    revision = f"/revision/{quote(address.revision, safe='')}" if address.revision else ""
    url = f"{server.endpoint}/api/models/{address.repository}{revision}?blobs=true"
    try:
        answer = _Answer.model_validate_json(server.wait(server.begin_document(url)))
    except TransferError as error:
        raise refuse(str(address), server.endpoint, error) from error
    except ValidationError as error:
        raise _misunderstood(address, server) from error
    if not _COMMIT.fullmatch(answer.sha):
        raise _misunderstood(address, server)
    return Tree(
        answer.id or address.repository,
        answer.sha,
        {file.rfilename: file.size for file in answer.siblings},
        {file.rfilename: file.lfs.sha256 for file in answer.siblings if file.lfs and file.lfs.sha256},
    )


def refuse(address: str, endpoint: str, error: TransferError) -> QloadError:
    """Why nothing of a repository can be read."""
    if error.code == "RevisionNotFound":
        what, remedy = "the repository has no such revision", "give a branch, a tag, or a whole commit"
    elif error.code == "GatedRepo":
        what, remedy = "the repository is gated", f"ask for access on its page, and {_LOG_IN}"
    elif error.status in (401, 403, 404):
        what, remedy = "there is no such repository, or it is private", f"check its name, or {_LOG_IN}"
    elif error.status == 429:
        what, remedy = "the hub limits requests", f"try again later, or {_LOG_IN}"
    else:
        what, remedy = "the repository cannot be read", f"see to it that {endpoint} can be reached, and try again"
    return QloadError(what, where=address, found=str(error), remedy=remedy)


def _misunderstood(address: Address, server: Server) -> QloadError:
    return QloadError(
        "the answer is no description of a repository",
        where=str(address),
        remedy=f"see to it that {server.endpoint} is a hub: HF_ENDPOINT may say another",
    )
