"""Work begun ahead: order, bounds, errors, and what is abandoned."""

import threading
from contextvars import ContextVar

import pytest

from ravqa.core.ahead import Group, abandoning, in_order

LONG = 20  # seconds after which a test that waits in vain fails


def test_results_come_in_order_though_later_ones_are_ready_first():
    last = threading.Event()

    def task(number):
        if number == 2:
            last.set()
        else:
            assert last.wait(LONG)
        return number

    tasks = (lambda i=i: task(i) for i in range(3))
    assert list(in_order(tasks, ahead=2)) == [0, 1, 2]


def test_no_more_is_taken_than_may_be_ahead():
    taken, release = [], threading.Event()

    def tasks():
        for i in range(10):
            taken.append(i)
            if len(taken) == 4:  # the first, and the three that may be ahead of it
                release.set()
            yield lambda i=i: (release.wait(LONG), i)

    found = in_order(tasks(), ahead=3)
    assert next(found) == (True, 0)
    assert taken == [0, 1, 2, 3]
    assert [i for _, i in found] == list(range(1, 10))


def test_without_anything_ahead_tasks_run_here_one_after_the_other():
    events = []

    def tasks():
        for i in range(3):
            events.append(f"take {i}")
            yield lambda i=i: events.append((i, threading.current_thread()))

    list(in_order(tasks(), ahead=0))
    here = threading.current_thread()
    assert events == ["take 0", (0, here), "take 1", (1, here), "take 2", (2, here)]


def test_an_error_comes_in_its_turn_and_the_rest_is_abandoned():
    abandoned, begun = threading.Event(), threading.Event()

    def waiting():
        with abandoning(abandoned.set):
            begun.set()
            assert abandoned.wait(LONG)

    def failing():
        assert begun.wait(LONG)
        raise ValueError("bad")

    found = in_order(iter([lambda: 1, failing, waiting]), ahead=5)
    assert next(found) == 1
    with pytest.raises(ValueError, match="bad"):
        next(found)
    assert abandoned.wait(LONG)


def test_an_error_of_the_iterable_comes_after_what_was_begun():
    release = threading.Event()

    def tasks():
        yield lambda: (release.wait(LONG), 1)[1]
        yield lambda: 2
        release.set()
        raise ValueError("no more")

    found = in_order(tasks(), ahead=5)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(found)


def test_who_begins_to_wait_after_the_end_is_told_at_once():
    begun, go, told, enclosed = (threading.Event() for _ in range(4))

    def late():
        begun.set()
        go.wait(LONG)
        with abandoning(told.set):
            enclosed.set()

    found = in_order(iter([lambda: begun.wait(LONG), late]), ahead=1)
    assert next(found) is True
    found.close()
    go.set()
    assert enclosed.wait(LONG)
    assert told.is_set()


def test_what_is_no_longer_enclosed_is_not_told_and_outside_nobody_is():
    told = []
    with abandoning(lambda: told.append("outside")):
        pass

    def task():
        with abandoning(lambda: told.append("over")):
            pass
        return 1

    assert list(in_order(iter([task, task]), ahead=1)) == [1, 1]
    assert told == []


def test_tasks_have_the_context_of_when_they_began():
    name = ContextVar("name", default="none")

    def tasks():
        for value in "abc":
            name.set(value)
            yield name.get

    assert list(in_order(tasks(), ahead=2)) == ["a", "b", "c"]


def test_work_within_abandoned_work_is_abandoned_too():
    told, waits = [], threading.Event()

    def inner():
        gone = threading.Event()
        with abandoning(gone.set):
            waits.set()
            assert gone.wait(LONG)
        told.append("inner")

    group = Group()
    outer = group.start(lambda: list(in_order([inner], ahead=1)))
    assert waits.wait(LONG)
    group.abandon()
    assert outer.result(LONG) == [None]
    assert told == ["inner"]
