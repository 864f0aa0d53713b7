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

Requests wait and are sent on the event loop of `clients.transport`. What is not said to be for all
threads belongs to the loop's own.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ravqa.clients.transport import event_loop
from ravqa.core.ahead import AbandonedError, abandoning, place
from ravqa.core.errors import PromptError, ServerError
from ravqa.core.outcomes import Failure

T = TypeVar("T")
R = TypeVar("R")

Ask = Callable[[T, asyncio.Event], Coroutine[Any, Any, R]]
"""Asks for an item on the event loop; the event is set once nobody waits for the result."""

_Result = tuple[int, Any, BaseException | None]


class _Batch(Generic[T, R]):
    """Items of one call, and what became of those that were begun.

    Attributes:
        place: how many runs go first.
        todo: items not begun, with their positions.
        under_way: how many are begun and have no result.
        stop: set if no further item shall begin.
        results: position, result and error of each item that was begun; None after the last.
    """

    def __init__(self, ask: Ask[T, R], items: Sequence[T]):
        self.ask = ask
        self.place = place()
        self.todo = deque(enumerate(items))
        self.under_way = 0
        self.stop = asyncio.Event()
        self.results: queue.SimpleQueue[_Result | None] = queue.SimpleQueue()
        self.context = copy_context()


@dataclass(eq=False, slots=True)
class _Rest:
    """The wait of a request that failed.

    Attributes:
        sent: when it was sent; `stop` is the event of its call.
        over: set if it shall not wait any longer.
    """

    sent: float
    stop: asyncio.Event
    over: asyncio.Event = field(default_factory=asyncio.Event)


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
        self._limiting = threading.Lock()
        self._batches: deque[_Batch[Any, Any]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()  # also of those that rest
        self._asking = 0  # items that have a worker
        self._resting = 0  # items that gave theirs to another one while they wait
        self._sending = 0
        self._turns: deque[asyncio.Future[None]] = deque()  # of those that wait to be sent
        self._lowered = 0.0  # when the limit was last lowered
        self._not_before = 0.0  # the earliest time at which the server accepts a request again
        self._last_answer = -math.inf
        self._rests: set[_Rest] = set()

    def widen(self, workers: int) -> None:
        """Allow at least so many requests at a time; any thread may do so."""
        with self._limiting:
            if workers > self.workers:
                self.workers, self.limit = workers, float(workers)

    def each(self, ask: Ask[T, R], items: Sequence[T]) -> Iterator[tuple[int, R | Failure]]:
        """Yield positions and results of `ask(item, stop)` as they come; see `Client.each`.

        Any thread may do so, except the loop's.
        """
        if not items:
            return
        batch = _Batch(ask, items)
        waiting = set(range(len(items)))
        fatal: BaseException | None = None
        tell = event_loop().call_soon_threadsafe
        gone = AbandonedError("nobody waits for the answers any more")

        def abandon() -> None:
            tell(self._drop, batch)
            batch.results.put((-1, None, gone))

        with abandoning(abandon):
            tell(self._submit, batch)
            try:
                while (result := batch.results.get()) is not None:
                    position, value, error = result
                    if error is gone:
                        raise gone
                    if error is None:
                        waiting.remove(position)
                        yield position, value
                    elif not isinstance(error, PromptError):
                        if fatal is None or isinstance(fatal, AbandonedError):
                            fatal = error  # whose requests were abandoned because of it
                    elif not batch.stop.is_set():  # else abandoned because of the fatal error
                        waiting.remove(position)
                        yield position, Failure.of(error)
            finally:
                tell(self._drop, batch)
        if isinstance(fatal, ServerError):
            yield from ((position, Failure.of(fatal)) for position in sorted(waiting))
        elif fatal is not None:
            raise fatal

    def _submit(self, batch: _Batch[Any, Any]) -> None:
        after = sum(other.place <= batch.place for other in self._batches)
        self._batches.insert(after, batch)
        self._begin()

    def _begin(self) -> None:
        """Begin items for as many workers as are free."""
        while self._asking < self.workers and (found := self._next()) is not None:
            batch, position, item = found
            self._asking += 1
            batch.under_way += 1
            task = asyncio.get_running_loop().create_task(
                self._ask(batch, position, item), context=batch.context.copy()
            )
            self._tasks.add(task)  # the loop alone does not keep it

    def _next(self) -> tuple[_Batch[Any, Any], int, Any] | None:
        while self._batches:
            batch = self._batches[0]
            if batch.todo:
                return batch, *batch.todo.popleft()
            self._batches.popleft()
        return None

    async def _ask(self, batch: _Batch[T, Any], position: int, item: T) -> None:
        """Ask for one item, and begin the next one."""
        value = error = None
        try:
            value = await batch.ask(item, batch.stop)
        except BaseException as e:
            error = e
            if not isinstance(e, PromptError):
                self._drop(batch)
        self._tasks.discard(asyncio.current_task())
        self._asking -= 1
        batch.under_way -= 1
        batch.results.put((position, value, error))
        self._end(batch)
        self._begin()
        self._hurry()

    def _end(self, batch: _Batch[Any, Any]) -> None:
        if not batch.todo and not batch.under_way:
            batch.results.put(None)

    def _drop(self, batch: _Batch[Any, Any]) -> None:
        """Begin no further item of a batch, and have none wait."""
        batch.stop.set()
        batch.todo.clear()
        for rest in self._rests:
            if rest.stop is batch.stop:
                rest.over.set()
        self._wake(len(self._turns))
        self._end(batch)

    @contextmanager
    def resting(self, sent: float, stop: asyncio.Event) -> Iterator[asyncio.Event]:
        """Have another item go on while this one waits in the block before it is tried again.

        At most as many as there are workers are replaced in this way.

        Args:
            sent: when the request that failed was sent (`time.monotonic`).
            stop: see `Ask`.

        Yields:
            An event that is set once it is no use to wait: `stop` is set; or nothing else is to be
            sent, and the server has answered another request since.
        """
        rest = _Rest(sent, stop)
        replaced = asyncio.current_task() in self._tasks and self._resting < self.workers
        self._rests.add(rest)
        if stop.is_set():
            rest.over.set()
        self._resting += replaced
        self._asking -= replaced
        self._begin()
        self._hurry()
        try:
            yield rest.over
        finally:
            self._rests.remove(rest)
            self._resting -= replaced
            self._asking += replaced

    def _hurry(self) -> None:
        """End waits of requests for which there is a worker."""
        if self._sending >= int(self.limit) or any(batch.todo for batch in self._batches):
            return
        for rest in self._rests:
            if self._last_answer >= rest.sent:
                rest.over.set()

    @asynccontextmanager
    async def sending(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Send one request in the block, once it may be sent.

        Raises:
            AbandonedError: `stop` was set meanwhile.
        """
        while self._sending >= int(self.limit):
            if stop.is_set():
                raise AbandonedError("nobody waits for the answer any more")
            turn = asyncio.get_running_loop().create_future()
            self._turns.append(turn)
            await turn
        self._sending += 1
        try:
            yield
        finally:
            self._sending -= 1
            self._wake(1)
            self._hurry()

    def _wake(self, most: int) -> None:
        """Have some of those look again who wait to be sent, the first ones first."""
        for _ in range(min(most, len(self._turns))):
            self._turns.popleft().set_result(None)

    @property
    def pause(self) -> float:
        """The seconds until the server accepts requests again; not positive if it does."""
        return self._not_before - time.monotonic()

    def answered(self) -> None:
        """Note that the server has answered a request."""
        self._last_answer = time.monotonic()
        with self._limiting:
            before = int(self.limit)
            self.limit = min(self.workers, self.limit + 1 / self.limit)
        if int(self.limit) > before:
            self._wake(1)
        self._hurry()

    def slow_down(self, sent: float, wait: float) -> None:
        """Note that there were too many requests.

        Args:
            sent: when the refused request was sent (`time.monotonic`). The number is lowered once
                for all requests that were under way together.
            wait: seconds for which no request is sent.
        """
        now = time.monotonic()
        self._not_before = max(self._not_before, now + wait)
        if sent >= self._lowered:
            self._lowered = now
            with self._limiting:
                self.limit = max(1.0, min(self.limit, self._sending + 1) / 2)


_FLOWS: weakref.WeakValueDictionary[tuple[str, str], Flow] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def flow_to(url: str, key: str, workers: int) -> Flow:
    """Return the flow of requests to a server; it has the most `workers` of those who ask it.

    Any thread may do so.

    Args:
        url: the server's address; `key` is the key that is sent there.
    """
    with _LOCK:
        found = _FLOWS.get((url, key))
        if found is None:
            found = _FLOWS[url, key] = Flow()
    found.widen(workers)
    return found
