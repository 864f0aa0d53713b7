"""The flow of requests to one server: who is next, and how many are under way.

All clients of a server in this process share one flow. A server that says that there are too many
requests (status 429, or a `Retry-After`) slows all of them down: nobody sends before the time that
it named, and half as many requests are under way afterwards. Each reply raises their number again,
by one for as many replies as there are requests under way (additive increase, multiplicative
decrease, as in TCP), up to `workers`.

Of several runs that ask at the same time, the first has all workers, and the next one those that
the first leaves idle (`ravqa.core.ahead.behind`).

A request that failed waits before it is repeated, and others are sent meanwhile. If there are none
left, and the server answers, the wait is cut short: it would only make the end of a run later.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ravqa.core.ahead import AbandonedError, abandoning, place
from ravqa.core.errors import PromptError, ServerError
from ravqa.core.outcomes import Failure

T = TypeVar("T")
R = TypeVar("R")


class _Batch(Generic[T, R]):
    """Items of one call, and what became of those that were begun.

    Attributes:
        place: how many runs go first.
        todo: items not begun, with their positions.
        stop: set if no further item shall begin.
        results: position, result and error of each item that was begun; None when abandoned.
    """

    def __init__(self, ask: Callable[[T, threading.Event], R], items: Sequence[T]):
        self.ask = ask
        self.place = place()
        self.todo = deque(enumerate(items))
        self.stop = threading.Event()
        self.results: queue.SimpleQueue[tuple[int, Any, BaseException | None] | None]
        self.results = queue.SimpleQueue()
        self._context = copy_context()

    def work(self, position: int, item: T) -> None:
        """Ask for one item, in the context of the call."""
        try:
            value = self._context.copy().run(self.ask, item, self.stop)
        except BaseException as e:
            if not isinstance(e, PromptError):
                self.stop.set()
            self.results.put((position, None, e))
        else:
            self.results.put((position, value, None))


@dataclass(eq=False, slots=True)
class _Rest:
    """The wait of a request that failed.

    Attributes:
        sent: when it was sent; `stop` is the event of its call.
        over: set if it shall not wait any longer.
    """

    sent: float
    stop: threading.Event
    over: threading.Event = field(default_factory=threading.Event)


class Flow:
    """Sends items of any number of batches at the same time.

    Batches of a run that comes first (`behind`) go first, and among those of one run, the first.

    Attributes:
        workers: most requests under way.
        limit: how many may be under way at the moment, 1 to `workers`.
    """

    def __init__(self) -> None:
        self.workers = 1
        self.limit = 1.0
        self._batches: deque[_Batch[Any, Any]] = deque()
        self._threads = 0  # those at work; others rest
        self._resting = 0
        self._own = threading.local()  # `works` in the flow's own threads
        self._sending = 0
        self._lowered = 0.0  # when the limit was last lowered
        self._not_before = 0.0  # the earliest time at which the server accepts a request again
        self._last_answer = -math.inf
        self._rests: set[_Rest] = set()
        self._changed = threading.Condition()

    def widen(self, workers: int) -> None:
        """Allow at least so many requests at a time."""
        with self._changed:
            if workers > self.workers:
                self.workers, self.limit = workers, float(workers)

    def each(
        self, ask: Callable[[T, threading.Event], R], items: Sequence[T]
    ) -> Iterator[tuple[int, R | Failure]]:
        """Yield positions and results of `ask(item, stop)` as they come; see `Client.each`."""
        batch = _Batch(ask, items)
        waiting = set(range(len(items)))
        left = len(items)  # that were begun, or will be
        fatal: BaseException | None = None

        def abandon() -> None:
            self._drop(batch)
            batch.results.put(None)

        with abandoning(abandon):
            self._submit(batch, len(items))
            try:
                while left:
                    result = batch.results.get()
                    if result is None:
                        raise AbandonedError("nobody waits for the answers any more")
                    left -= 1
                    position, value, error = result
                    if error is None:
                        waiting.remove(position)
                        yield position, value
                    elif not isinstance(error, PromptError):
                        if fatal is None or isinstance(fatal, AbandonedError):
                            fatal = error  # whose requests were abandoned because of it
                        left -= self._drop(batch)
                    elif not batch.stop.is_set():  # else abandoned because of the fatal error
                        waiting.remove(position)
                        yield position, Failure.of(error)
            finally:
                self._drop(batch)
        if isinstance(fatal, ServerError):
            yield from ((position, Failure.of(fatal)) for position in sorted(waiting))
        elif fatal is not None:
            raise fatal

    def _submit(self, batch: _Batch[Any, Any], items: int) -> None:
        with self._changed:
            after = sum(other.place <= batch.place for other in self._batches)
            self._batches.insert(after, batch)
            new = max(0, min(self.workers - self._threads, items))
            self._threads += new
        self._start(new)

    def _start(self, threads: int) -> None:
        # Daemons: an interrupted run does not wait for results that it will not read.
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        """Work off items until there are none."""
        self._own.works = True
        while True:
            with self._changed:
                found = self._next() if self._threads <= self.workers else None
                if found is None:
                    self._threads -= 1
                    self._hurry()
                    return
            batch, (position, item) = found
            batch.work(position, item)
            del found, batch, item

    def _next(self) -> tuple[_Batch[Any, Any], tuple[int, Any]] | None:
        while self._batches:
            batch = self._batches[0]
            if batch.todo and not batch.stop.is_set():
                return batch, batch.todo.popleft()
            self._batches.popleft()
        return None

    def _drop(self, batch: _Batch[Any, Any]) -> int:
        """Begin no further item of a batch; return how many were left."""
        with self._changed:
            batch.stop.set()
            for rest in self._rests:
                if rest.stop is batch.stop:
                    rest.over.set()
            self._changed.notify_all()
            left = len(batch.todo)
            batch.todo.clear()
            return left

    @contextmanager
    def resting(self, sent: float, stop: threading.Event) -> Iterator[threading.Event]:
        """Have another thread go on while this one waits in the block before it tries again.

        At most as many threads as there are workers are replaced in this way.

        Args:
            sent: when the request that failed was sent (`time.monotonic`).
            stop: see `each`.

        Yields:
            An event that is set once it is no use to wait: `stop` is set; or nothing else is to be
            sent, and the server has answered another request since.
        """
        rest = _Rest(sent, stop)
        with self._changed:
            replaced = hasattr(self._own, "works") and self._resting < self.workers
            if replaced:
                self._resting += 1  # and another one begins: as many are at work as before
            self._rests.add(rest)
            if stop.is_set():
                rest.over.set()
            self._hurry()
        if replaced:
            self._start(1)
        try:
            yield rest.over
        finally:
            with self._changed:
                self._rests.remove(rest)
                if replaced:
                    self._resting -= 1
                    self._threads += 1

    def _hurry(self) -> None:
        """End waits of requests for which there is a worker."""
        if self._sending >= int(self.limit) or self._waits():
            return
        for rest in self._rests:
            if self._last_answer >= rest.sent:
                rest.over.set()

    def _waits(self) -> bool:
        """Return whether there are items to be begun."""
        return any(batch.todo and not batch.stop.is_set() for batch in self._batches)

    @contextmanager
    def sending(self, stop: threading.Event) -> Iterator[None]:
        """Send one request in the block, once it may be sent.

        Raises:
            AbandonedError: `stop` was set meanwhile.
        """
        with self._changed:
            while self._sending >= int(self.limit):
                if stop.is_set():
                    raise AbandonedError("nobody waits for the answer any more")
                self._changed.wait()
            self._sending += 1
        try:
            yield
        finally:
            with self._changed:
                self._sending -= 1
                self._changed.notify()
                self._hurry()

    @property
    def pause(self) -> float:
        """The seconds until the server accepts requests again; not positive if it does."""
        return self._not_before - time.monotonic()

    def answered(self) -> None:
        """Note that the server has answered a request."""
        with self._changed:
            self._last_answer = time.monotonic()
            before = int(self.limit)
            self.limit = min(self.workers, self.limit + 1 / self.limit)
            if int(self.limit) > before:
                self._changed.notify()
            self._hurry()

    def slow_down(self, sent: float, wait: float) -> None:
        """Note that there were too many requests.

        Args:
            sent: when the refused request was sent (`time.monotonic`). The number is lowered once
                for all requests that were under way together.
            wait: seconds for which no request is sent.
        """
        with self._changed:
            now = time.monotonic()
            self._not_before = max(self._not_before, now + wait)
            if sent >= self._lowered:
                self._lowered = now
                self.limit = max(1.0, min(self.limit, self._sending + 1) / 2)


_FLOWS: weakref.WeakValueDictionary[tuple[str, str], Flow] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def flow_to(url: str, key: str, workers: int) -> Flow:
    """Return the flow of requests to a server; it has the most `workers` of those who ask it.

    Args:
        url: the server's address; `key` is the key that is sent there.
    """
    with _LOCK:
        found = _FLOWS.get((url, key))
        if found is None:
            found = _FLOWS[url, key] = Flow()
    found.widen(workers)
    return found
