"""What the doors' web applications share: bodies of bounded size, and who may ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine to itself."""


def is_foreign(
    headers: Mapping[str, str], hosts: Collection[str] | None, *, navigates: bool = False
) -> bool:
    """Return whether another website asks, or this one is asked for under another's name.

    Args:
        headers: of a request, by names in lower case.
        hosts: names under which may be asked; None for any.
        navigates: whether a page itself is asked for, which links elsewhere may do.
    """
    host = urlsplit(f"//{headers.get('host', '')}")
    if hosts is not None and host.hostname not in hosts:
        return True
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host.netloc:
        return True
    site = headers.get("sec-fetch-site", "none")
    return site not in {"same-origin", "none"} and not navigates


async def read_body(receive: Receive, most: int) -> bytes | None:
    """Return a request's body; None if it is larger than allowed, or the visitor has gone."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            return None
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


def body_again(body: bytes, receive: Receive) -> Receive:
    """Return a function that gives a body that was read, and then what follows it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return waiting.pop() if waiting else await receive()

    return given
