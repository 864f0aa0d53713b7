"""HTTP requests, sent by one event loop in a thread of its own for all clients of the process.

aiohttp parses HTTP in C: a request takes a third of the processor time that it takes with httpx,
and a fifth of what it takes with the package `openai`. Nothing is retried or redirected here.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import httpx

from ravqa.core.errors import import_extra
from ravqa.core.http import causes

if TYPE_CHECKING:
    import ssl

    from aiohttp import ClientResponse, ClientSession

R = TypeVar("R")

_CLOSED_S = 1.0  # for connections to be closed at the end


class Request(NamedTuple):
    """A request without its body."""

    method: str
    url: str
    headers: Mapping[str, str]


class Response(NamedTuple):
    """The beginning of a response.

    Attributes:
        phrase: the reason that follows the status.
        headers: names in any case.
    """

    status: int
    phrase: str
    headers: Mapping[str, str]


class SizeError(Exception):
    """A body is larger than its limit."""


class TransportError(Exception):
    """A request failed; the message says how, in a few words.

    Attributes:
        late: the time was over.
        unreachable: there was no connection.
    """

    def __init__(self, reason: str, *, late: bool = False, unreachable: bool = False):
        super().__init__(reason)
        self.late = late
        self.unreachable = unreachable


class Transport:
    """Connections to one server, for tasks on the event loop."""

    def __init__(self, proxy: str | None, *, why: str):
        """Open nothing yet.

        Args:
            proxy: the proxy's address; None without.
            why: what needs the server, for messages.

        Raises:
            MissingExtraError: the package aiohttp is not installed.
        """
        self._aiohttp = import_extra("aiohttp", "openai", why=why)
        self._proxy = proxy
        self._session: ClientSession | None = None

    async def whole(
        self, request: Request, data: bytes | None, seconds: float, limit: int, error_limit: int
    ) -> tuple[Response, bytes, Exception | None]:
        """Send a request and return its response, the body, and why that is not whole, if so.

        Args:
            data: the request's body.
            seconds: until which the response must be complete.
            limit: most bytes of the body, or `error_limit` if the status is none of a success.

        Raises:
            TransportError: there is no response.
        """
        async with await self._sent(request, data, seconds) as found:
            response = _beginning(found)
            most = limit if 200 <= found.status < 300 else error_limit
            body = bytearray()
            try:
                async for part in found.content.iter_any():
                    body += part
                    if len(body) > most:
                        found.close()
                        return response, bytes(body[:most]), SizeError()
            except (self._aiohttp.ClientError, OSError) as e:
                return response, bytes(body), self.failure(e)
            return response, bytes(body), None

    async def opened(self, request: Request, data: bytes | None, seconds: float) -> Opened:
        """Send a request and return its response with the body unread; arguments as `whole`.

        Raises:
            TransportError: there is no response.
        """
        return Opened(self, await self._sent(request, data, seconds))

    async def _sent(self, request: Request, data: bytes | None, seconds: float) -> ClientResponse:
        try:
            return await self._opened_session().request(
                request.method,
                request.url,
                data=data,
                headers=request.headers,
                proxy=self._proxy,
                allow_redirects=False,
                timeout=self._aiohttp.ClientTimeout(total=seconds),
            )
        except (self._aiohttp.ClientError, OSError) as e:
            raise self.failure(e) from None

    def _opened_session(self) -> ClientSession:
        """Return the session, which belongs to the loop."""
        if self._session is None or self._session.closed:
            aiohttp = self._aiohttp
            self._session = session = aiohttp.ClientSession(
                # As many connections as there are requests.
                connector=aiohttp.TCPConnector(limit=0, ssl=_trusted()),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
            weakref.finalize(self, _close, session, event_loop())
        return self._session

    def failure(self, error: Exception) -> TransportError:
        """Return what an exception of aiohttp means."""
        if isinstance(error, TimeoutError):  # also asyncio's
            return TransportError("the time is over", late=True)
        if isinstance(error, self._aiohttp.ClientHttpProxyError):
            return TransportError(f"{error.status} {error.message}", unreachable=True)
        if isinstance(error, self._aiohttp.ClientResponseError):  # it is no HTTP
            return TransportError(error.message.partition("\n")[0])
        if isinstance(error, self._aiohttp.ClientPayloadError):
            return TransportError("the server hung up before its end")
        if isinstance(error, self._aiohttp.ClientConnectorCertificateError):
            why = getattr(error.certificate_error, "verify_message", error.certificate_error)
            return TransportError(f"the certificate is not trusted: {why}", unreachable=True)
        unreachable = isinstance(error, self._aiohttp.ClientConnectorError)
        return TransportError(_reason(error), unreachable=unreachable)


class Opened:
    """A response whose body is read in parts."""

    def __init__(self, transport: Transport, found: ClientResponse):
        self._transport = transport
        self._found = found
        self.response = _beginning(found)

    async def next(self) -> bytes:
        """Return the next part of the body; nothing at its end.

        Raises:
            TransportError: it ends too early, or comes too late.
        """
        try:
            return await self._found.content.readany()
        except (self._transport._aiohttp.ClientError, OSError) as e:
            raise self._transport.failure(e) from None

    def close(self) -> None:
        """Close the connection, unless the body was read to its end; any thread may do so."""
        event_loop().call_soon_threadsafe(self._found.close)


def _beginning(found: ClientResponse) -> Response:
    return Response(found.status, found.reason or "", found.headers)


def _reason(error: Exception) -> str:
    """Return an exception's reason in a few words."""
    for cause in [getattr(error, "os_error", error), *causes(error)]:
        if isinstance(cause, OSError):
            # asyncio's own text names the call instead of the reason.
            number = cause.errno or 0
            named = os.strerror(number) if number > 0 else cause.strerror
            if named:
                return str(named)
    return str(error) or type(error).__name__


def run(task: Coroutine[Any, Any, R]) -> R:
    """Return what a task on the event loop returns; for all threads except the loop's."""
    return asyncio.run_coroutine_threadsafe(task, event_loop()).result()


@cache
def _loop_of(process: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    # A daemon: an interrupted program does not wait for replies that it will not read.
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


_STARTING = threading.Lock()


def event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process."""
    with _STARTING:
        return _loop_of(os.getpid())  # a fork has no threads of its parent


def _close(session: ClientSession, loop: asyncio.AbstractEventLoop) -> None:
    closing = asyncio.run_coroutine_threadsafe(session.close(), loop)
    try:
        asyncio.get_running_loop()  # objects may be collected by the loop's thread
    except RuntimeError:
        with suppress(Exception):
            closing.result(_CLOSED_S)


@cache
def _trusted() -> ssl.SSLContext:
    return httpx.create_ssl_context()
