"""The order among runs that are under way at the same time in one process.

Runs share what is cached: a run that began later finds what an earlier one has asked, and does not
pay for it. So that this does not depend on chance, a chunk of questions of the later run enters a
stage only when the earlier runs, if they use the same caches there, have looked up all that they
will: what each run finds and pays is then what it would if they came one after the other.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Literal

from ravqa.core.ahead import AbandonedError, abandoning

LaneStage = Literal["answer", "judge"]
"""The stages of a chunk: reranking and answering; and judging."""


class Lanes:
    """Runs of one process that may be under way at the same time, in the order of their lanes.

    Attributes:
        changed: is notified when a lane has ended or all of its chunks are begun.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.lanes: list[Lane] = []

    def open(self) -> Lane:
        """Return the place of another run, behind all others."""
        with self.changed:
            self.lanes.append(Lane(self, len(self.lanes)))
            return self.lanes[-1]


class Lane:
    """The place of one run.

    Attributes:
        number: how many runs come before it.
        begun: whether all chunks of the run are begun.
        ended: whether the run is over.
    """

    def __init__(self, lanes: Lanes, number: int):
        self.number = number
        self.begun = self.ended = False
        self._lanes = lanes
        self._chunks = 0
        self._through: Counter[LaneStage] = Counter()  # chunks that look up no more
        self._keys: dict[LaneStage, frozenset[str]] = {}

    def uses(self, stage: LaneStage, keys: Collection[str]) -> None:
        """Declare which results of a stage are shared, by fingerprints of those who make them.

        It is called before the first chunk begins. A run that shares none never waits, and nobody
        waits for it.
        """
        self._keys[stage] = frozenset(keys)

    def begin(self) -> None:
        """Note that another chunk begins."""
        self._chunks += 1

    def all_begun(self) -> None:
        """Note that no further chunk begins."""
        self._change("begun")

    def end(self) -> None:
        """Note that the run is over, however it ended."""
        self._change("ended")

    @contextmanager
    def stage(self, stage: LaneStage) -> Iterator[Callable[[], None]]:
        """Have a chunk in a stage, once the earlier runs have looked up all that they share.

        Yields:
            A function to call when the chunk looks up no more in this stage, before its end.

        Raises:
            AbandonedError: nobody waits for the chunk any more.
        """
        self._wait(stage)
        told = threading.Event()

        def through() -> None:
            with self._lanes.changed:
                if not told.is_set():
                    told.set()
                    self._through[stage] += 1
                    self._lanes.changed.notify_all()

        try:
            yield through
        finally:
            through()

    def _change(self, what: Literal["begun", "ended"]) -> None:
        with self._lanes.changed:
            setattr(self, what, True)
            self._lanes.changed.notify_all()

    def _wait(self, stage: LaneStage) -> None:
        changed, gone = self._lanes.changed, threading.Event()

        def leave() -> None:
            with changed:
                gone.set()
                changed.notify_all()

        with abandoning(leave), changed:
            changed.wait_for(lambda: gone.is_set() or self._first(stage))
            if gone.is_set():
                raise AbandonedError("nobody waits for these questions any more")

    def _first(self, stage: LaneStage) -> bool:
        """Return whether no earlier run may still look up what this one shares with it."""
        own = self._keys[stage]
        return all(
            lane.ended
            or (lane.begun and lane._through[stage] == lane._chunks)
            or own.isdisjoint(lane._keys[stage])
            for lane in self._lanes.lanes[: self.number]
        )
