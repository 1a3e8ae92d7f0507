"""Reads bytes from the hub: tried again where that may help, and within a bounded time."""

import time
from collections.abc import Callable, Mapping
from functools import partial

import huggingface_hub
from huggingface_hub import constants, get_token
from huggingface_hub.errors import OfflineModeIsEnabled

from qload.errors import QloadError
from qload.hub.answers import Span, TransferError, ask, find_start, take
from qload.hub.errands import Errand
from qload.hub.limits import Limits

MAX_DOCUMENT = 1 << 26
"""The bytes of the longest list of files."""


class Server:
    """A hub, the one of HF_ENDPOINT where none is given, asked with the user's token if there is one."""

    def __init__(self, endpoint: str | None = None, limits: Limits | None = None) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._limits = limits or Limits()
        self._headers = _make_headers()
        self._failures = 0

    def begin(self, url: str, span: Span) -> Errand[bytes]:
        """Begin to read some bytes of a file."""
        headers = {**self._headers, "range": f"bytes={span.start}-{span.stop - 1}"}
        read = partial(self._read_range, url, headers, span)
        return Errand(lambda deadline: self._persist(read, deadline), self._limits.allow(span.length))

    def begin_document(self, url: str) -> Errand[bytes]:
        """Begin to read an answer of unknown length."""
        read = partial(self._read_document, url, self._headers)
        return Errand(lambda deadline: self._persist(read, deadline), self._limits.allow(0))

    def wait(self, errand: Errand[bytes]) -> bytes:
        """What was begun. Raises TransferError, and QloadError where the hub is not to be asked at all."""
        try:
            data = errand.wait()
        except TransferError as error:
            self._failures += error.again is not None
            raise
        except TimeoutError as error:
            self._failures += 1
            raise TransferError("the server is too slow", again=0) from error
        except OfflineModeIsEnabled as error:
            raise QloadError(
                "the hub is not asked in offline mode",
                where=self.endpoint,
                remedy="unset HF_HUB_OFFLINE, or give the folder that the checkpoint was downloaded into",
            ) from error
        except OSError as error:
            raise TransferError(f"the request failed ({error})") from error
        self._failures = 0
        return data

    def _persist(self, read: Callable[[float], bytes], deadline: float) -> bytes:
        """Try again what may come right, as long as there is time."""
        wait = self._limits.wait
        for left in reversed(range(self._limits.tries)):
            if self._failures >= self._limits.failures:
                raise TransferError(f"{self._failures} others had no answer, so that it was not asked for", again=0)
            try:
                return read(deadline)
            except TransferError as error:
                if error.again is None or not left:
                    raise
                pause = max(error.again, wait)
                if time.monotonic() + pause > deadline:
                    raise _describe_wait(error, pause) from error
            time.sleep(pause)
            wait *= 2
        raise TransferError("it was not asked for")

    def _read_range(self, url: str, headers: Mapping[str, str], span: Span, deadline: float) -> bytes:
        with ask(url, headers, self._limits.pause, deadline) as response:
            start = find_start(response, span)
            data = take(response, start + span.length, deadline)[start:]
        if len(data) < span.length:
            raise TransferError(f"the answer ends after {len(data)} of {span.length} bytes", again=0)
        return data

    def _read_document(self, url: str, headers: Mapping[str, str], deadline: float) -> bytes:
        with ask(url, headers, self._limits.pause, deadline) as response:
            data = take(response, MAX_DOCUMENT + 1, deadline)
        if len(data) > MAX_DOCUMENT:
            raise TransferError(f"the answer is longer than {MAX_DOCUMENT} bytes")
        return data


def _make_headers() -> dict[str, str]:
    """Those of every request. huggingface_hub's own builder of them asks the hub for a list of user agents first."""
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {
        "user-agent": f"qload; huggingface_hub/{huggingface_hub.__version__}",
        # A CDN that compresses an answer ignores the range.
        "accept-encoding": "identity",
        **({"authorization": f"Bearer {token}"} if token else {}),
    }


def _describe_wait(error: TransferError, pause: float) -> TransferError:
    """The error of a server that asks to wait for longer than anybody would."""
    asks = f", and asks to wait for {pause:g} s" if error.again else ""
    return TransferError(f"{error}{asks}", again=error.again, status=error.status, code=error.code)
