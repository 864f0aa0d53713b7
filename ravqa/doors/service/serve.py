"""Serving over HTTP until somebody ends the program, and the end itself."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from ravqa.core.errors import UserError
from ravqa.doors.asgi import LOOPBACK
from ravqa.doors.service.app import application
from ravqa.doors.service.desk import Desk, Terms
from ravqa.doors.service.gate import Metrics
from ravqa.doors.shelf import Shelf

_AT_ONCE = 1000
"""Connections at a time; further ones are told to come back."""
_IDLE_S = 2.0
"""How long connections have, when the service ends, for the request that they are sending."""


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        port: 0 for any that is free.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(2048)
    except (OSError, OverflowError):
        made.close()
        raise UserError(
            f"the service cannot listen at {host}, port {port}: it is taken, or the address is "
            "not this machine's: choose others with --host and --port"
        ) from None
    return made


def inherited(number: int) -> socket.socket:
    """Return a listening socket that the program was started with.

    Raises:
        UserError: there is none under this number.
    """
    try:
        made = socket.socket(fileno=number)
        if made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return made
    except OSError:
        pass
    raise UserError(f"--fd {number}: the program was started without a listening socket there")


def serve(
    shelf: Shelf,
    terms: Terms,
    at: socket.socket,
    *,
    drain: float = 30,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that have begun are answered first.

    Args:
        at: the socket; if its address is this machine's own, the service answers to no other name.
        drain: seconds that requests have at the end.
        ready: called once requests are accepted.

    Raises:
        MissingExtraError: a package is not installed.
    """
    metrics = Metrics()
    desk = Desk(shelf, terms, batches=metrics.batches.observe)
    host = at.getsockname()[0] if at.family != socket.AF_UNIX else "localhost"
    hosts = LOOPBACK if host in LOOPBACK else None
    gate = application(desk, metrics, hosts=hosts)

    class Server(uvicorn.Server):
        """One that ends in two steps: first it takes no connections, then it closes them."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            for kind in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(kind, self.end)
            yield

        def end(self) -> None:
            self.force_exit = self.should_exit  # who asks twice does not wait
            self.should_exit = gate.draining = True

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            ready()

        async def shutdown(self, sockets: Any = None) -> None:
            gate.draining = True
            for server in self.servers:
                server.close()
            await _emptied(self)
            await super().shutdown(sockets=sockets)
            desk.close()

    config = uvicorn.Config(
        gate,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_AT_ONCE,
        timeout_graceful_shutdown=max(1, int(drain)),
        timeout_keep_alive=30,
        ws="none",
        lifespan="on",
    )
    with _logged():
        asyncio.run(Server(config).serve(sockets=[at]))


async def _emptied(server: Any) -> None:
    """Let connections send what they had begun to send: after its reply, each is closed."""
    end = time.monotonic() + _IDLE_S
    await asyncio.sleep(0.1)  # for those that have just been accepted
    while server.server_state.connections and time.monotonic() < end and not server.force_exit:
        await asyncio.sleep(0.02)


class _Lines(logging.Formatter):
    """Log records as JSON, one a line."""

    def format(self, record: logging.LogRecord) -> str:
        now = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {"time": now.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        message = record.getMessage()
        if record.name == "ravqa.serve" and message.startswith("{"):
            return json.dumps(line | json.loads(message))
        return json.dumps(line | {"message": message})


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Write the log of the service to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    loggers = [(logging.getLogger("ravqa.serve"), logging.INFO)]
    others = ("ravqa.doors", "uvicorn.error")
    loggers += [(logging.getLogger(name), logging.WARNING) for name in others]
    for logger, level in loggers:
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, _ in loggers:
            logger.removeHandler(handler)
