"""Calls from many threads and tasks, done in batches."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ravqa.integrations.threads import Batcher, iterated


class Doubler:
    """Doubles numbers; remembers its batches, and how many ran at once."""

    def __init__(self, hold=None):
        self.batches = []
        self.running = 0
        self.most = 0
        self.hold = hold

    def __call__(self, items):
        self.running += 1
        self.most = max(self.most, self.running)
        self.batches.append(list(items))
        if self.hold is not None:
            self.hold.wait(10)
        time.sleep(0.001)
        self.running -= 1
        if -1 in items:
            raise ValueError(f"{len(items)} items")
        return [2 * item for item in items]


def test_one_call_is_a_batch_of_its_own():
    doubler = Doubler()
    batcher = Batcher(doubler)
    assert [batcher.call(i) for i in range(5)] == [0, 2, 4, 6, 8]
    assert doubler.batches == [[0], [1], [2], [3], [4]]


def test_the_caller_works_itself_and_does_not_stay_for_others():
    threads = []
    hold, held = threading.Event(), threading.Event()

    def run(items):
        threads.append(threading.current_thread())
        held.set()
        assert hold.wait(10)
        return items

    batcher = Batcher(run, limit=1)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(lambda: (held.wait(10), batcher.call(2))[1])
        third = pool.submit(batcher.call, 3)

        def let_go():
            while len(batcher._waiting) < 1:
                time.sleep(0.001)
            hold.set()

        letting = threading.Thread(target=let_go)
        letting.start()
        assert batcher.call(1) == 1
        assert (second.result(10), third.result(10)) == (2, 3)
        letting.join()
    assert threads[0] is threading.main_thread()
    assert threads[1].name.startswith("ravqa")


def test_batches_within_batches_do_not_wait_for_threads():
    inner = Batcher(lambda items: (time.sleep(0.002), [item + 1 for item in items])[1], limit=1)
    outers = [Batcher(lambda items: [inner.call(item) for item in items]) for _ in range(40)]

    async def main():
        return await asyncio.gather(*(outer.acall(i) for i, outer in enumerate(outers)))

    assert asyncio.run(asyncio.wait_for(main(), 10)) == list(range(1, 41))


def test_an_interrupt_reaches_who_waits():
    def interrupted(items):
        raise KeyboardInterrupt

    batcher = Batcher(interrupted)
    with pytest.raises(KeyboardInterrupt):
        batcher.call(1)
    assert not batcher._busy


def test_what_is_asked_meanwhile_shares_the_next_batches():
    doubler = Doubler(hold=threading.Event())
    batcher = Batcher(doubler, limit=3)

    async def main():
        first = asyncio.create_task(batcher.acall(0))
        while not doubler.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.acall(i)) for i in range(1, 6)]
        await asyncio.sleep(0.01)
        doubler.hold.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(main()) == [0, 2, 4, 6, 8, 10]
    assert doubler.batches == [[0], [1, 2, 3], [4, 5]]


def test_threads_and_event_loops_together_get_their_own_results():
    doubler = Doubler()
    batcher = Batcher(doubler)

    async def tasks(numbers):
        return await asyncio.gather(*(batcher.acall(i) for i in numbers))

    with ThreadPoolExecutor(6) as pool:
        loops = [pool.submit(asyncio.run, tasks(range(i, i + 50))) for i in (1000, 2000)]
        plain = list(pool.map(batcher.call, range(200)))
        assert [future.result() for future in loops] == [
            [2 * i for i in range(start, start + 50)] for start in (1000, 2000)
        ]
    assert plain == [2 * i for i in range(200)]
    assert doubler.most == 1
    assert sum(map(len, doubler.batches)) == 300


def test_an_error_meets_only_who_has_caused_it():
    doubler = Doubler(hold=threading.Event())
    batcher = Batcher(doubler)

    async def main():
        tasks = [asyncio.create_task(batcher.acall(i)) for i in (0, 1, -1, 2)]
        await asyncio.sleep(0.01)
        doubler.hold.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    good, one, error, two = asyncio.run(main())
    assert (good, one, two) == (0, 2, 4)
    assert isinstance(error, ValueError)
    assert str(error) == "1 items"
    assert batcher.call(4) == 8
    with pytest.raises(ValueError, match="1 items"):
        batcher.call(-1)


def test_who_stops_waiting_is_left_out():
    doubler = Doubler(hold=threading.Event())
    batcher = Batcher(doubler)

    async def main():
        first = asyncio.create_task(batcher.acall(0))
        while not doubler.batches:
            await asyncio.sleep(0.001)
        second, third = (asyncio.create_task(batcher.acall(i)) for i in (1, 2))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.sleep(0.01)
        doubler.hold.set()
        return await asyncio.gather(first, second, third, return_exceptions=True)

    first, second, third = asyncio.run(main())
    assert (first, third) == (0, 4)
    assert isinstance(second, asyncio.CancelledError)
    assert doubler.batches == [[0], [2]]


def test_an_iterator_is_closed_with_its_reader():
    closed = threading.Event()

    def values():
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    async def main():
        found = iterated(values())
        assert await anext(found) == 1
        await found.aclose()

    asyncio.run(main())
    assert closed.is_set()


def test_an_iterator_is_waited_for_elsewhere():
    let_go = threading.Event()
    threads = set()

    def values():
        for i in range(3):
            threads.add(threading.current_thread())
            yield i
            let_go.wait(10)

    async def main():
        seen = []
        async for value in iterated(values()):
            seen.append(value)
            let_go.set()
        return seen

    assert asyncio.run(main()) == [0, 1, 2]
    assert threading.main_thread() not in threads
