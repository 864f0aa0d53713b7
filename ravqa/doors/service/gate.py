"""What every request to the service passes: who asks, how much is sent, and what is noted of it."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import traceback
import uuid
from collections.abc import Collection, MutableMapping
from typing import Any

from ravqa.core.errors import import_extra
from ravqa.doors.asgi import App, Message, Receive, Send, body_again, is_foreign, read_body
from ravqa.doors.service.forms import BODY

_log = logging.getLogger("ravqa.serve")
_BODY_S = 30
_OPEN = frozenset({"/health", "/ready"})
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    502: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def problem(status: int, message: str) -> dict[str, Any]:
    """Return the body of the reply to a request that failed, as OpenAI's interface has it."""
    kind = _TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "code": None, "param": None}}


class Metrics:
    """Counts in Prometheus's format, of this service alone."""

    def __init__(self) -> None:
        """Make the counters."""
        kit: Any = import_extra("prometheus_client", "serve", why="ravqa serve")
        self._kit = kit
        self._registry = kit.CollectorRegistry()
        labels = ["method", "path", "status"]
        self.requests = kit.Counter(
            "ravqa_requests", "Requests by path and status", labels, registry=self._registry
        )
        self.seconds = kit.Histogram(
            "ravqa_request_seconds",
            "Time from the head of a request to the end of its reply",
            ["path"],
            registry=self._registry,
            buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )
        self.batches = kit.Histogram(
            "ravqa_batch_questions",
            "Questions that were answered together",
            registry=self._registry,
            buckets=(1, 2, 4, 8, 16, 32),
        )
        self.waiting = kit.Gauge(
            "ravqa_waiting", "Requests that wait for the models", registry=self._registry
        )
        self.under_way = kit.Gauge(
            "ravqa_requests_under_way", "Requests without a reply so far", registry=self._registry
        )

    def text(self) -> bytes:
        """Return all counts as text."""
        found: bytes = self._kit.generate_latest(self._registry)
        return found


class Gate:
    """ASGI middleware around the service.

    Attributes:
        draining: whether the service is about to end: connections are closed after their replies.
    """

    def __init__(
        self, app: App, metrics: Metrics, *, token: str, hosts: Collection[str] | None
    ) -> None:
        """Wrap an application.

        Args:
            token: that requests must bring; blank for none.
            hosts: names under which the service may be asked for; None for any.
        """
        self.draining = False
        self._app = app
        self._metrics = metrics
        self._token = token.encode()
        self._hosts = hosts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no socket of another kind is used
            return
        begun, status, name = time.perf_counter(), 500, uuid.uuid4().hex
        noted: dict[str, str] = {}
        scope["ravqa"] = noted  # what the log says of this request

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", name.encode())]
                headers += [
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-store"),
                ]
                if self.draining or status in {408, 413}:
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            await send(message)

        self._metrics.under_way.inc()
        try:
            await self._admit(scope, receive, sent)
        except Exception as e:  # answered by the application; messages may have contents
            places = [f"{at.filename}:{at.lineno}" for at in traceback.extract_tb(e.__traceback__)]
            error = {"request": name, "error": type(e).__name__, "places": places[-8:]}
            _log.error(json.dumps(error))
        finally:
            self._metrics.under_way.dec()
            taken = time.perf_counter() - begun
            other = "/mcp" if scope["path"] == "/mcp" else "other"
            route = getattr(scope.get("route"), "path", other)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(taken)
            if _log.isEnabledFor(logging.INFO):
                line = {"request": name, "method": method, "path": route, "status": status}
                _log.info(json.dumps(line | {"seconds": round(taken, 4)} | noted))

    async def _admit(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        if is_foreign(headers, self._hosts):
            await _refuse(403, "this service is not for other websites", send)
            return
        if self._token and scope["path"] not in _OPEN and not self._is_known(headers):
            await _refuse(401, "a bearer token is needed: Authorization: Bearer ...", send)
            return
        if scope["method"] in {"POST", "PUT", "PATCH", "DELETE"}:
            try:
                too_long = int(headers.get("content-length", "0")) > BODY
                async with asyncio.timeout(_BODY_S):
                    body = None if too_long else await read_body(receive, BODY)
            except TimeoutError:
                await _refuse(408, f"the request did not arrive within {_BODY_S} seconds", send)
                return
            if body is None:
                await _refuse(413, f"more than the limit of {BODY:,} bytes", send)
                return
            receive = body_again(body, receive)
        await self._app(scope, receive, send)

    def _is_known(self, headers: dict[str, str]) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(token.strip().encode("utf-8", "surrogateescape"), self._token)
        return same and kind.lower() == "bearer"


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


async def _refuse(status: int, message: str, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    body = json.dumps(problem(status, message)).encode()
    await send({"type": "http.response.body", "body": body})
