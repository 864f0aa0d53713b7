"""Ctrl-C at moments at which Python drops exceptions."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SOON = 0.01  # seconds, after which a finaliser is probably over; else the interrupt comes again


@contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """Repeat, in the enclosed work, interrupts that come while Python drops exceptions.

    Python prints and forgets what finalisers (`__del__`) and callbacks of weak references raise,
    the KeyboardInterrupt of a Ctrl-C among it: the work would go on as if nobody had pressed it.
    """
    before = sys.unraisablehook
    repeated: list[threading.Timer] = []

    def hook(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        # Later: what is raised here is dropped too. A signal, since it also ends waiting.
        timer = threading.Timer(
            _SOON, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]
        )
        timer.daemon = True
        repeated.append(timer)
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in repeated:
            timer.cancel()
