"""Long work outside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")

_THREADS = 8


@cache
def _pool() -> ThreadPoolExecutor:
    # A separate pool: work waiting here must not use up the threads of `asyncio.to_thread`.
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="ravqa")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of the threads


class Batcher(Generic[Q, A]):
    """Runs calls from any threads and event loops in batches, one thread at a time.

    Calls made while a batch is running form the next one: a single call does not wait, and
    concurrent ones share the model's passes. If a batch fails, each of its items is tried alone, so
    that an error reaches only the call that caused it.
    """

    def __init__(self, run: Callable[[Sequence[Q]], Sequence[A]], *, limit: int = 64):
        """Store the function that processes a batch.

        Args:
            run: returns one result per item, in order.
            limit: most items of a batch.
        """
        self._run = run
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: list[tuple[Q, Future[A]]] = []
        self._busy = False

    def call(self, item: Q) -> A:
        """Return the item's result; the calling thread waits, or does the work if no other does."""
        future, idle = self._add(item)
        if idle:
            self._work(future)
        return future.result()

    async def acall(self, item: Q) -> A:
        """Return the item's result without blocking the event loop."""
        future, idle = self._add(item)
        if idle:
            self._hand_over()
        return await asyncio.wrap_future(future)

    def _add(self, item: Q) -> tuple[Future[A], bool]:
        """Enqueue an item; return its future, and whether no thread is working on the queue."""
        future: Future[A] = Future()
        with self._lock:
            self._waiting.append((item, future))
            idle, self._busy = not self._busy, True
        return future, idle

    def _work(self, until: Future[A] | None = None) -> None:
        """Process the queue: all of it, or until this result is available."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
                if until is not None and until.done():
                    break
                batch, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
            # Leave out cancelled calls.
            self._answer([pair for pair in batch if pair[1].set_running_or_notify_cancel()])
        self._hand_over()

    def _hand_over(self) -> None:
        # A separate thread, for as long as there is work: a pool could be exhausted by batches
        # whose items wait for other batches.
        threading.Thread(target=self._work, name="ravqa-batches", daemon=True).start()

    def _answer(self, batch: Sequence[tuple[Q, Future[A]]]) -> None:
        if not batch:
            return
        try:
            results = list(zip(batch, self._run([item for item, _ in batch]), strict=True))
        except BaseException as e:
            if len(batch) > 1 and isinstance(e, Exception):
                for pair in batch:
                    self._answer([pair])
                return
            for _, future in batch:
                future.set_exception(e)
            return
        for (_, future), result in results:
            future.set_result(result)


async def in_thread(call: Callable[..., T], *args: object) -> T:
    """Run `call(*args)` in another thread without blocking the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_pool(), partial(call, *args))


async def iterated(values: Iterator[T]) -> AsyncGenerator[T, None]:
    """Yield an iterator's values, awaiting each in another thread; close it with the consumer."""
    end = object()
    try:
        while (value := await in_thread(next, values, end)) is not end:
            yield value
    finally:
        close = getattr(values, "close", None)
        if close is not None:
            with contextlib.suppress(ValueError):  # its last value is still being computed
                close()
