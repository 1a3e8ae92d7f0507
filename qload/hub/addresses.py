"""What a user calls a checkpoint on the hub: a repository, a file or folder in it, and a revision."""

import re
from dataclasses import dataclass

from huggingface_hub.utils import HFValidationError, validate_repo_id

from qload.errors import QloadError

PREFIX = "hf:"
_FORM = re.compile(r"/*(?P<repository>[^/@]+/[^/@]+)(?:/(?P<path>[^@]*))?(?:@(?P<revision>.+))?")
_COMMIT_AND_PATH = re.compile(r"(?P<commit>[0-9a-f]{40})/(?P<path>.+)")


@dataclass(frozen=True, slots=True)
class Address:
    """A repository, `path` of a file or folder in it, empty for all of it, and a revision, the main one where None."""

    repository: str
    path: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        return f"{PREFIX}{self.repository}{path}" + (f"@{self.revision}" if self.revision else "")


def read_address(text: str) -> Address:
    """Read `hf:org/name`, `hf:org/name@revision` or `hf:org/name/file@revision`; a revision may have slashes.

    A file may also stand behind a whole commit, `hf:org/name@commit/file`, as it does in the paths of checkpoints that
    were opened. Raises QloadError for anything else.
    """
    match = _FORM.fullmatch(text.removeprefix(PREFIX))
    if match is None or not text.isprintable():
        raise _malformed(text, "")
    repository, path, revision = match["repository"], match["path"] or "", match["revision"]
    if revision and not path and (both := _COMMIT_AND_PATH.fullmatch(revision)):
        revision, path = both["commit"], both["path"]
    if revision and not _may_be_a_revision(revision):
        raise _malformed(text, f"the revision {revision}")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise _malformed(text, str(error).partition(":")[0]) from error
    return Address(repository, path.strip("/"), revision)


def _may_be_a_revision(text: str) -> bool:
    """Git has no reference with two dots or a part that begins with one, which a URL would lead elsewhere."""
    return ".." not in text and not any(part.startswith(".") for part in text.split("/"))


def _malformed(text: str, found: str) -> QloadError:
    return QloadError(
        "is no address of a repository on the hub",
        where=text,
        expected="hf:org/name, hf:org/name@revision or hf:org/name/file@revision",
        found=found,
    )
