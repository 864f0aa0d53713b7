"""Runs of a study in this process: one after the other, or side by side where they ask servers.

A run that asks a server begins when all questions of the runs before it are begun: it uses the
workers that these leave idle while they wait for their last replies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import TypeVar

from ravqa.core.ahead import Group, behind
from ravqa.runs.lanes import Lane, Lanes
from ravqa.studies.plan import PlannedRun

R = TypeVar("R")

OPEN = 3
"""Most runs that are under way at the same time."""
_LEAVE_S = 5.0  # for runs to notice that they are abandoned

Work = Callable[[int, int, Lane | None], R]
"""Called as work(number, first, lane): the number of the run, that of the first one that is still
under way, and the run's place among these; None if it is alone."""


def run_in_turn(
    runs: Sequence[PlannedRun], work: Work[R], finished: Callable[[int, R], object]
) -> None:
    """Work on every run; an exception, such as an interrupt, abandons those under way.

    Args:
        work: is called in a thread of its own for runs that may have others beside them.
        finished: called as finished(number of the run, result) by this thread.
    """
    lanes, group = Lanes(), Group()
    under_way: dict[int, tuple[Lane, Future[R]]] = {}

    def collect() -> None:
        for number in [n for n, (lane, _) in under_way.items() if lane.ended]:
            finished(number, under_way.pop(number)[1].result())

    def settle(ready: Callable[[], bool]) -> None:
        """Wait until there is something to do."""
        with lanes.changed:
            lanes.changed.wait_for(lambda: ready() or any(x.ended for x, _ in under_way.values()))
        collect()

    def may_begin(run: PlannedRun) -> bool:
        others = [runs[number] for number in under_way]
        begun = all(lane.begun or lane.ended for lane, _ in under_way.values())
        return not others or (begun and len(others) < OPEN and _fits(run, others))

    try:
        for number, run in enumerate(runs):
            while not may_begin(run):
                settle(partial(may_begin, run))
            if not run.servers:
                finished(number, work(number, number, None))
                continue
            lane, first = lanes.open(), min(under_way, default=number)
            task = partial(_in_lane, lane, partial(work, number, first, lane))
            under_way[number] = lane, group.start(task)
        while under_way:
            settle(lambda: False)
    except BaseException:
        group.abandon()
        wait([future for _, future in under_way.values()], _LEAVE_S)
        raise


def _in_lane(lane: Lane, work: Callable[[], R]) -> R:
    try:
        with behind(lane.number):
            return work()
    finally:
        lane.end()


def _fits(run: PlannedRun, others: Sequence[PlannedRun]) -> bool:
    """Return whether a run may be under way beside others.

    All ask servers, and it needs no model on this machine that the others do not have in memory.
    """
    loaded = frozenset().union(*(other.models for other in others))
    return bool(run.servers) and all(o.servers for o in others) and run.models <= loaded
