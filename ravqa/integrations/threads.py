"""Work that takes long, away from the event loop."""

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
    # Of its own: what waits here must not use up the threads of `asyncio.to_thread`.
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="ravqa")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of the threads


class Batcher(Generic[Q, A]):
    """Calls from any threads and event loops, done in batches by one thread at a time.

    What is asked while a batch is being worked on forms the next one: a single call waits for
    nothing, and many at once share the model's passes. Where a batch fails, each of its items is
    tried alone, so that an error meets only who has caused it.
    """

    def __init__(self, run: Callable[[Sequence[Q]], Sequence[A]], *, limit: int = 64):
        """Take what works on a batch.

        Args:
            run: gives one result per item, in order.
            limit: most items of a batch.
        """
        self._run = run
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: list[tuple[Q, Future[A]]] = []
        self._busy = False

    def call(self, item: Q) -> A:
        """The item's result; the calling thread waits, or does the work if nobody does."""
        future, idle = self._add(item)
        if idle:
            self._work(future)
        return future.result()

    async def acall(self, item: Q) -> A:
        """The item's result; the event loop goes on."""
        future, idle = self._add(item)
        if idle:
            self._hand_over()
        return await asyncio.wrap_future(future)

    def _add(self, item: Q) -> tuple[Future[A], bool]:
        """The item's place among the waiting, and whether nobody works on them."""
        future: Future[A] = Future()
        with self._lock:
            self._waiting.append((item, future))
            idle, self._busy = not self._busy, True
        return future, idle

    def _work(self, until: Future[A] | None = None) -> None:
        """Work on what waits: on all of it, or until this result is there."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
                if until is not None and until.done():
                    break
                batch, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
            # Whoever has given up waiting is left out.
            self._answer([pair for pair in batch if pair[1].set_running_or_notify_cancel()])
        self._hand_over()

    def _hand_over(self) -> None:
        # A thread of its own, for as long as there is work: with a pool, batches whose items wait
        # for other batches could take up all of it.
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
    """`call(*args)` in another thread; the event loop goes on."""
    return await asyncio.get_running_loop().run_in_executor(_pool(), partial(call, *args))


async def iterated(values: Iterator[T]) -> AsyncGenerator[T, None]:
    """An iterator's values, each waited for in another thread; closed with the reader."""
    end = object()
    try:
        while (value := await in_thread(next, values, end)) is not end:
            yield value
    finally:
        close = getattr(values, "close", None)
        if close is not None:
            with contextlib.suppress(ValueError):  # its last value is still being made
                close()
