"""What stands between the network and Gradio: only the requests that the page makes reach it.

Gradio serves far more than one page needs: files by path, proxies, other programs' interfaces,
recordings. Here everything that the page does not use does not exist, files are those in the folder
of uploads alone, requests are bounded in size, and no other website can make a visitor's browser
ask anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from ravqa.doors.asgi import App, Message, Receive, Send, body_again, is_foreign, read_body

_API = "/gradio_api"
_FILE = f"{_API}/file="
_JOIN = f"{_API}/queue/join"
_UPLOAD = f"{_API}/upload"
_READ = re.compile(
    rf"/|/(assets|static|svelte)/[\w./-]+|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)"
    rf"|{_API}/(queue/data|heartbeat/\w+|startup-events|upload_progress|theme\.css)"
)
_WRITTEN = frozenset({_JOIN, _UPLOAD, f"{_API}/cancel", f"{_API}/reset"})
_EVENT = 100_000
"""Most bytes of an event: texts and choices; a photo is uploaded before."""
_FORM = 10_000  # what a form adds to the file in it
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware around Gradio's application."""

    def __init__(
        self, app: App, *, uploads: Path, most_bytes: int, hosts: Collection[str] | None
    ) -> None:
        """Wrap an application.

        Args:
            uploads: the folder of uploaded files, the only ones that are served.
            most_bytes: of an uploaded file.
            hosts: names under which the page may be asked for; None for any.
        """
        self._app = app
        self._uploads = uploads.resolve()
        self._most_bytes = most_bytes
        self._hosts = hosts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no socket of another kind is used
            return
        status = self._refused(scope)
        if not status and scope["method"] == "POST":
            is_event = scope["path"] != _UPLOAD
            most = _EVENT if is_event else self._most_bytes + _FORM
            body = await read_body(receive, most)
            plain = self._plain(body) if body is not None and is_event else body
            if plain is not None:
                receive = body_again(plain, receive)
            else:
                status = 413 if body is None else 403
        if status:
            await _refuse(status, send)
        else:
            await self._app(scope, receive, _with_headers(send))

    def _refused(self, scope: MutableMapping[str, Any]) -> int:
        """Return the status with which a request is refused, by its head alone; 0 if it is not."""
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        page = (scope["method"], scope["path"]) == ("GET", "/")
        if is_foreign(headers, self._hosts, navigates=page):
            return 403
        path, method = scope["path"], scope["method"]
        if method not in {"GET", "HEAD", "POST"}:
            return 405
        if method == "POST":
            known = path in _WRITTEN
        elif path.startswith(_FILE):
            known = self._is_upload(path.removeprefix(_FILE))
        else:
            known = _READ.fullmatch(path) is not None and ".." not in path
        return 0 if known else 404

    def _is_upload(self, path: str) -> bool:
        """Return whether a path is that of an uploaded file, links followed."""
        try:
            place = Path(path).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            return False
        inside = place.is_file() and place.is_relative_to(self._uploads)
        return inside and Path(path).is_absolute()

    def _plain(self, body: bytes) -> bytes | None:
        """Return an event, written anew so that all readers of it agree on what it says.

        None if it names a file that is no upload, or an address.
        """
        try:
            event = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not all(self._is_upload(path) for path in _paths(event)):
            return None
        return json.dumps(event).encode()


def _paths(value: Any) -> Iterator[str]:
    """Yield what an event says are paths of files."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "path" in one:
                yield str(one["path"])
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return sent


async def _refuse(status: int, send: Send) -> None:
    said = {403: "not allowed", 404: "not here", 405: "not allowed", 413: "too large"}[status]
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": said.encode()})
