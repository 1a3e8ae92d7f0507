"""Asks for one URL, and holds an answer to what was asked for before its bytes are taken."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from httpx2 import URL, HTTPError, InvalidURL, Request, Response, TimeoutException, TransportError
from huggingface_hub.utils import get_session, parse_ratelimit_headers

MAX_REDIRECTS = 10
MAX_WASTED = 1 << 18
"""The bytes that are read for nothing where a server ignores ranges."""
_MAX_DRAINED = 1 << 14
_MAX_MESSAGE = 200
_PASSING = (408, 429, 500, 502, 503, 504)
"""The statuses of what may be over a moment later."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class TransferError(OSError):
    """Bytes that could not be had, in one line; it names no URL, for those of a CDN are secrets.

    `again` are the seconds after which it may be tried once more, None where that is of no use. `status` and `code` are
    the hub's own, 0 and empty where another server answered, or none.
    """

    def __init__(self, what: str, *, again: float | None = None, status: int = 0, code: str = "") -> None:
        super().__init__(what)
        self.again, self.status, self.code = again, status, code


class Span(NamedTuple):
    """The bytes [start, stop) of a file of `size` bytes."""

    start: int
    stop: int
    size: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@contextmanager
def ask(url: str, headers: Mapping[str, str], pause: float, deadline: float) -> Iterator[Response]:
    """The answer to a GET request, after redirects, with its body yet unread.

    The token goes to the URL's own server alone. Raises TransferError, too where reading the body fails.
    """
    client = get_session()
    try:
        response = _follow(client.build_request("GET", url, headers=dict(headers), timeout=pause), deadline)
        try:
            _check_status(response, is_home=response.url.origin == URL(url).origin)
            yield response
        finally:
            response.close()
    except TimeoutException as error:
        raise TransferError(f"the server sent nothing for {pause:g} s", again=0) from error
    except TransportError as error:
        raise TransferError(f"the connection failed ({_describe(error)})", again=0) from error
    except (HTTPError, InvalidURL) as error:
        raise TransferError(f"the request failed ({_describe(error)})") from error


def _describe(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:_MAX_MESSAGE]


def _follow(request: Request, deadline: float) -> Response:
    """Follow redirects one by one, for the client would read each one's body, however long.

    It takes the token out of a request that leads to another server.
    """
    for _ in range(MAX_REDIRECTS + 1):
        response = get_session().send(request, stream=True, follow_redirects=False)
        if not response.has_redirect_location:
            return response
        try:
            # A connection can be used again only where its answer was read.
            if _length(response, _MAX_DRAINED + 1) <= _MAX_DRAINED:
                response.read()
        finally:
            response.close()
        if response.next_request is None:
            raise TransferError("the server redirects to what is no address")
        check_time(deadline)
        request = response.next_request
    raise TransferError(f"the server redirects more than {MAX_REDIRECTS} times")


def _length(response: Response, default: int) -> int:
    text = response.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else default


def check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TransferError("the server is too slow", again=0)


def _check_status(response: Response, *, is_home: bool) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status == 416:
        raise TransferError("the server has fewer bytes of it than the repository lists")
    message = response.headers.get("x-error-message", "")[:_MAX_MESSAGE]
    raise TransferError(
        f"{'the hub' if is_home else response.url.host} answers {status} {message or response.reason_phrase}".strip(),
        again=_wait_for(response) if status in _PASSING else None,
        status=status if is_home else 0,
        code=response.headers.get("x-error-code", "") if is_home else "",
    )


def _wait_for(response: Response) -> float:
    """The seconds that the server asks to wait for, 0 where it does not say."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return 0.0


def find_start(response: Response, span: Span) -> int:
    """The place in an answer's body of the bytes that were asked for. Raises TransferError where they are not there."""
    if response.status_code == 206:
        _check_range(response, span)
        return 0
    if response.headers.get("content-type", "").startswith("text/html"):
        raise TransferError("the server answers with a web page, not with the file")
    if "content-encoding" not in response.headers:
        _check_size(_length(response, span.size), span)
    if span.start > MAX_WASTED:
        raise TransferError(f"the server ignores ranges; byte {span.start} cannot be read without those before it")
    return span.start


def _check_range(response: Response, span: Span) -> None:
    text = response.headers.get("content-range", "")
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None or response.headers.get("content-encoding", "identity") != "identity":
        raise TransferError("the server answers with a part of the file, and does not say which")
    if match[3] != "*":
        _check_size(int(match[3]), span)
    if (int(match[1]), int(match[2])) != (span.start, span.stop - 1):
        expected = f"bytes {span.start}-{span.stop - 1}"
        raise TransferError(f"the server answers with another range (expected {expected}, found {text[:60]})")


def _check_size(size: int, span: Span) -> None:
    if size != span.size:
        raise TransferError(f"the server's file is of another size (expected {span.size} bytes, found {size})")


def take(response: Response, count: int, deadline: float) -> bytes:
    """The first `count` bytes of a body, fewer where it ends; no more than one piece beyond them is read."""
    pieces, taken, is_exact = list[bytes](), 0, _length(response, -1) == count
    for piece in response.iter_bytes():
        pieces.append(piece)
        taken += len(piece)
        # A body that ends there is read to its end, so that the connection can be used again.
        if taken > count or (taken == count and not is_exact):
            break
        check_time(deadline)
    return b"".join(pieces)[:count]
