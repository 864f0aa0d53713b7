"""Work begun ahead of its turn, on threads; its results come in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

from ravqa.core.errors import UserError

T = TypeVar("T")


class AbandonedError(UserError):
    """Nobody waits for the work any more."""


class Group:
    """Work that is abandoned together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._abandoned = False
        self._told: list[Callable[[], object]] = []

    def start(self, task: Callable[[], T]) -> Future[T]:
        """Begin a task on a thread of its own, in a copy of the caller's context."""
        future: Future[T] = Future()

        def work() -> None:
            _GROUP.set(self)
            try:
                future.set_result(task())
            except BaseException as e:
                future.set_exception(e)

        # A daemon: an interrupted program does not wait for results that it will not read.
        threading.Thread(target=copy_context().run, args=[work], daemon=True).start()
        return future

    def abandon(self) -> None:
        """Call everything registered, now and from now on."""
        with self._lock:
            self._abandoned = True
            told, self._told = self._told, []
        for tell in told:
            tell()

    def register(self, tell: Callable[[], object]) -> None:
        """Have `tell` called once the work is abandoned, at once if it is."""
        with self._lock:
            if not self._abandoned:
                self._told.append(tell)
                return
        tell()

    def forget(self, tell: Callable[[], object]) -> None:
        """Undo `register`."""
        with self._lock:
            if tell in self._told:
                self._told.remove(tell)


_GROUP: ContextVar[Group | None] = ContextVar("group", default=None)


@contextmanager
def abandoning(tell: Callable[[], object]) -> Iterator[None]:
    """Have `tell` called, by another thread, if the enclosed work is abandoned meanwhile."""
    group = _GROUP.get()
    if group is None:
        yield
        return
    group.register(tell)
    try:
        yield
    finally:
        group.forget(tell)


def in_order(tasks: Iterable[Callable[[], T]], ahead: int) -> Generator[T, None, None]:
    """Yield what tasks return, in order, while later ones are under way.

    If one raises, or the caller stops, the later ones are abandoned (`abandoning`). What the
    iterable itself raises comes after the results of the tasks before.

    Args:
        tasks: taken from the iterable by the caller's thread as it goes on, one by one.
        ahead: most tasks begun, or finished, while an earlier one is awaited; with 0, tasks run
            in the caller's thread, one after the other.
    """
    if ahead <= 0:
        yield from (task() for task in tasks)
        return
    group, begun = Group(), deque[Future[T]]()
    with abandoning(group.abandon):  # with the caller's own work
        yield from _in_order(tasks, ahead, group, begun)


def _in_order(
    tasks: Iterable[Callable[[], T]], ahead: int, group: Group, begun: deque[Future[T]]
) -> Generator[T, None, None]:
    try:
        more, error = iter(tasks), None
        while True:
            try:
                begun.append(group.start(next(more)))
            except StopIteration:
                break
            except Exception as e:  # it comes after what was begun before it
                error = e
                break
            while begun and (len(begun) > ahead or begun[0].done()):
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
        if error is not None:
            raise error
    finally:
        group.abandon()


_PLACE: ContextVar[int] = ContextVar("place", default=0)


@contextmanager
def behind(runs: int) -> Iterator[None]:
    """Let the requests of so many runs go before those of the enclosed work."""
    token = _PLACE.set(runs)
    try:
        yield
    finally:
        _PLACE.reset(token)


def place() -> int:
    """Return how many runs go before this context's work."""
    return _PLACE.get()
