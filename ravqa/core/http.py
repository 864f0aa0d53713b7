"""File downloads over HTTP with retries, deadlines, size limits and safe redirects."""

from __future__ import annotations

import math
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import IO, Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

import ravqa
from ravqa.core.errors import UserError

_TIMEOUT_S = 30.0  # without a byte
_TRIES = 3
_BACKOFF_S = 1.0  # before the second try; doubled before the third
_MAX_WAIT_S = 60.0  # longer waits that a server asks for are cut to this
_LONGEST_S = 1e9  # so that no string of digits becomes infinity
_REDIRECTIONS = 10
_LARGEST_REDIRECTION = 2**16  # bytes
_PASSING = frozenset({429, *range(500, 600)})  # HTTP statuses worth another try

_SLOWEST = 2**16  # bytes expected in each `_STALL_S` of a download without a deadline
_STALL_S = 120.0
_LONGEST_TIMEOUT_S = 10**6  # sockets take a few centuries at most

Report = Callable[[int, int | None], object]
"""A callback: takes the bytes received, and the bytes expected if the server says how many."""


class TimeLeft:
    """The time left until a deadline, to be set as the timeout of a connection's reads and writes.

    A plain timeout starts again with every byte. Sockets ask an integer-like timeout for its value
    before every read, so that this one becomes shorter. They wait whole seconds: the deadline is
    exceeded by one second at most.
    """

    def __init__(self, seconds: float, *, longest: float = _LONGEST_TIMEOUT_S):
        """Set the deadline.

        Args:
            seconds: from now on.
            longest: seconds that one read or write may take.
        """
        self._longest = longest
        self.renew(seconds)

    def apply(self, request: Any) -> None:
        """Set the deadline for a request of httpx (or of its successor httpx2)."""
        timeouts = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {**timeouts, "read": self, "write": self}

    def renew(self, seconds: float) -> None:
        """Set the deadline again, from now on."""
        self._until = time.monotonic() + min(seconds, _LONGEST_TIMEOUT_S)

    def __index__(self) -> int:
        """Return the seconds left, rounded up.

        Raises:
            TimeoutError: there are none.
        """
        if self.over():
            raise TimeoutError("the deadline has passed")
        return max(1, math.ceil(min(self._until - time.monotonic(), self._longest)))

    def over(self) -> bool:
        """Return whether the deadline has passed."""
        return time.monotonic() >= self._until


class FetchError(Exception):
    """A file could not be fetched; the message says why."""


class StoppedError(Exception):
    """The `Fetcher` was stopped."""


class _PassingError(FetchError):
    """A transient failure, with the seconds to wait if the server gives them."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def proxy_url(url: str) -> str | None:
    """Return the address of the proxy that the environment sets for an address; None without."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname or proxy_bypass(parts.hostname):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def proxy_for(url: str) -> str | None:
    """Return the proxy (host and port) that the environment sets for an address; None without."""
    proxy = proxy_url(url)
    return proxy and (proxy.partition("://")[2].rpartition("@")[2].strip("/") or proxy)


class Fetcher:
    """A thread-safe file downloader.

    Attributes:
        stop: once set, downloads in progress end with StoppedError.
    """

    def __init__(self, *, limit: int | None = None, deadline: float | None = None):
        """Create a client with the environment's proxies and certificates.

        Args:
            limit: size of the largest accepted file, in bytes.
            deadline: seconds that one try may take in total.

        Raises:
            UserError: the environment names an unsupported kind of proxy.
        """
        self.stop = threading.Event()
        self._limit = limit
        self._deadline = deadline
        agent = f"ravqa/{ravqa.__version__}"
        try:
            self._client = httpx.Client(
                verify=ssl.create_default_context(),
                timeout=_TIMEOUT_S,
                max_redirects=_REDIRECTIONS,
                event_hooks={"response": [_check_redirection]},
                headers={"User-Agent": agent, "Accept-Encoding": "identity"},
            )
        except (ValueError, ImportError, httpx.InvalidURL) as e:
            raise UserError(f"the proxy set in the environment cannot be used: {e}") from None

    def fetch(self, url: str, out: IO[bytes], report: Report | None = None) -> None:
        """Write the file at an http(s) address to `out`, from its beginning.

        Redirects to other schemes, and from https to http, are not followed.

        Raises:
            FetchError: it cannot be fetched; transient failures were retried.
            StoppedError: see `stop`.
            OSError: `out` cannot be written.
        """
        tries = Retrying(
            retry=retry_if_exception_type(_PassingError),
            stop=stop_after_attempt(_TRIES),
            wait=_wait,
            sleep=self._pause,
            reraise=True,
        )
        try:
            tries(self._try, url, out, report)
        except _PassingError as e:
            raise FetchError(f"{e} (tried {_TRIES} times)") from None

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise StoppedError

    def _try(self, url: str, out: IO[bytes], report: Report | None) -> None:
        self._pause(0)
        out.seek(0)
        out.truncate()
        received, expected = 0, None
        left = TimeLeft(self._deadline or _STALL_S, longest=_TIMEOUT_S)
        enough = _SLOWEST
        try:
            response = self._open(url, left)
            try:
                expected = _length(response.headers)
                for chunk in response.iter_raw():
                    out.write(chunk)
                    received += len(chunk)
                    if self._limit is not None and max(received, expected or 0) > self._limit:
                        raise FetchError(f"it is larger than the limit of {self._limit} bytes")
                    if self._deadline is None and received >= enough:
                        left.renew(_STALL_S)
                        enough = received + _SLOWEST
                    if left.over():
                        raise self._late()
                    if report is not None:
                        report(received, expected)
                    self._pause(0)
            finally:
                response.close()
        except httpx.TooManyRedirects:
            raise FetchError(f"redirected more than {_REDIRECTIONS} times") from None
        except httpx.InvalidURL as e:
            raise FetchError(f"redirected to something that is not an address ({e})") from None
        except httpx.TransportError as e:
            if left.over():
                raise self._late() from None
            if isinstance(e, httpx.RemoteProtocolError) and received:
                of = "" if expected is None else f" of {expected}"
                raise _PassingError(f"cut off after {received}{of} bytes") from None
            raise _failure(e) from None
        if expected is not None and received != expected:
            raise _PassingError(f"cut off after {received} of {expected} bytes")

    def _late(self) -> _PassingError:
        if self._deadline is not None:
            return _PassingError(f"not complete within {self._deadline:g} s")
        return _PassingError(f"fewer than {_SLOWEST} bytes within {_STALL_S:g} s")

    def _open(self, url: str, left: TimeLeft) -> httpx.Response:
        """Return the reply with status 200, its body still unread."""
        try:
            request = self._client.build_request("GET", url)
        except (httpx.InvalidURL, ValueError) as e:
            raise FetchError(f"not an address ({e})") from None
        left.apply(request)
        response = self._client.send(request, stream=True, follow_redirects=True)
        if response.status_code != HTTPStatus.OK:
            response.close()
            reason = _state(response.status_code)
            if response.status_code in _PASSING:
                raise _PassingError(reason, retry_after(response.headers))
            raise FetchError(reason)
        return response


def _check_redirection(response: httpx.Response) -> None:
    if response.has_redirect_location:
        allowed = {"https"} if response.url.scheme == "https" else {"http", "https"}
        try:
            target = urljoin(str(response.url), response.headers["location"])
            scheme = urlsplit(target).scheme
        except ValueError:
            scheme = ""
        if scheme not in allowed:
            raise FetchError(f"{_state(response.status_code)} to an address that is refused")
        if isinstance(response.stream, httpx.SyncByteStream):
            response.stream = _Short(response.stream)


class _Short(httpx.SyncByteStream):
    """The body of a redirection, which httpx reads to its end; a long one is refused."""

    def __init__(self, stream: httpx.SyncByteStream):
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        read = 0
        for part in self._stream:
            read += len(part)
            if read > _LARGEST_REDIRECTION:
                raise FetchError(f"redirected with more than {_LARGEST_REDIRECTION} bytes of text")
            yield part

    def close(self) -> None:
        self._stream.close()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait; None if it does not say.

    Args:
        headers: names in any case; Retry-After holds seconds or a date (RFC 9110, 10.2.3);
            servers with OpenAI's interface send retry-after-ms too.
    """
    milliseconds = headers.get("retry-after-ms")
    value = headers.get("retry-after", "").strip()
    for number, unit in ((milliseconds or "", 1e-3), (value, 1.0)):
        try:
            seconds = min(float(number), _LONGEST_S) * unit
        except ValueError:
            continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    date = date.replace(tzinfo=date.tzinfo or UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _PassingError) and error.wait is not None:
        return min(error.wait, _MAX_WAIT_S)
    return float(_BACKOFF_S * 2 ** (state.attempt_number - 1))


def _length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length", "")
    return int(value) if value.isdecimal() else None


def _state(code: int) -> str:
    try:
        return f"HTTP {code} {HTTPStatus(code).phrase}"
    except ValueError:
        return f"HTTP {code}"


def _failure(error: httpx.TransportError) -> FetchError:
    if isinstance(error, httpx.TimeoutException):
        return _PassingError(f"no answer within {_TIMEOUT_S:g} s")
    if isinstance(error, httpx.UnsupportedProtocol):
        return FetchError(f"not an address ({error})")
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return FetchError(f"the certificate is not trusted ({cause.verify_message})")
        if isinstance(cause, OSError) and cause.strerror:
            return _PassingError(cause.strerror)
    return _PassingError(str(error) or type(error).__name__)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, then its cause, the cause of that, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
