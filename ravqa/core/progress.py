"""How long work reports how far it is, and how that looks in a log file."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Progress = Callable[[str, int, int], object]
"""A callback, called as progress(what, done, total)."""

_EVERY_S = 30.0  # between two lines about unfinished work
_WINDOW = 10  # lines, and so at least five minutes, over which a speed is measured
_SHOWN_S = 2.0  # work that takes less says neither how long it took nor how fast it was


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass
class _Stage:
    """One kind of work.

    Attributes:
        first, done, total: steps done when it began (kept from an earlier run), now, and in all.
        began, at: time of the first report, and of the last with more done, in seconds.
        lines: `at` and `done` of the latest lines, oldest first.
    """

    what: str
    first: int
    done: int
    total: int
    began: float
    at: float
    lines: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def speed(self) -> tuple[int, float]:
        """Return how many steps were done in how many seconds: lately, if that is known."""
        whole = self.done - self.first, self.at - self.began
        if not self.lines or self.done == self.total:
            return whole
        at, done = self.lines[0]
        return (self.done - done, self.at - at) if self.at > at else whole


class ProgressLines:
    """Progress as lines of text: for each stage its first and last step, and one every 30 seconds.

    A line says how many steps are done, how many per second over the last five minutes or more, and
    how long the rest takes at that speed; the last line, the mean over the whole. Lines come from a
    thread, so that work which reports nothing for minutes is not silent either; they then say for
    how long nothing was done.

    A `Progress`; may be called from several threads.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        *,
        every: float = _EVERY_S,
        clock: Callable[[], float] = time.monotonic,
        watch: bool = True,
    ):
        """Write nothing yet.

        Args:
            write: called with each line.
            every: seconds between two lines about unfinished work.
            clock: returns the time in seconds.
            watch: start a thread that calls `tick`.
        """
        self._write = write
        self._every = every
        self._clock = clock
        self._watch = watch
        self._lock = threading.RLock()
        self._stages: dict[str, _Stage] = {}  # unfinished, the latest to report last
        self._finished: set[tuple[str, int]] = set()
        self._last = 0.0  # time of the last line
        self._ended: threading.Event | None = None  # set to end the thread

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report that `done` of `total` steps are finished."""
        with self._lock:
            now = self._clock()
            stage = self._stages.pop(what, None)
            if stage is None and done >= total and (what, total) in self._finished:
                return  # said again
            new = stage is None or done < stage.done
            if stage is None or new:
                stage = _Stage(what, done, done, total, now, now)
            if done > stage.done:
                stage.at = now
            stage.done, stage.total = done, total
            if done >= total:
                self._finished.add((what, total))
            else:
                self._finished.discard((what, total))
                self._stages[what] = stage
            if new or done >= total or now - self._last >= self._every:
                self._say(stage, now)
        self._attend()

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Report work of unknown length while the block runs."""
        with self._lock:
            now = self._clock()
            self._stages[what] = stage = _Stage(what, 0, 0, 0, now, now)
            self._say(stage, now)
        self._attend()
        try:
            yield
        finally:
            with self._lock:
                self._stages.pop(what, None)

    def tick(self) -> float:
        """Write a line about the current work if it is time; return the seconds until the next."""
        with self._lock:
            now = self._clock()
            if now - self._last >= self._every and self._stages:
                self._say(next(reversed(self._stages.values())), now)
            return max(0.0, self._last + self._every - now)

    def close(self) -> None:
        """Forget unfinished work, and end the thread."""
        with self._lock:
            self._stages.clear()
            self._finished.clear()
            if self._ended is not None:
                self._ended.set()
                self._ended = None

    def _say(self, stage: _Stage, now: float) -> None:
        self._last = now
        self._write(_line(stage, now, self._every))
        stage.lines.append((stage.at, stage.done))

    def _attend(self) -> None:
        """Start the thread if there is work that it is not watching yet."""
        with self._lock:
            if not self._watch or not self._stages or self._ended is not None:
                return
            self._ended = threading.Event()
            # The thread must not keep alive an object that nobody closes.
            arguments = weakref.ref(self), self._ended, self._every
            threading.Thread(target=_ticking, args=arguments, daemon=True).start()


def _ticking(lines: weakref.ref[ProgressLines], ended: threading.Event, wait: float) -> None:
    """Call `tick` whenever a line is due, until the object is closed or gone."""
    while not ended.wait(wait):
        found = lines()
        if found is None:
            return
        wait = found.tick() or found._every
        del found


def _line(stage: _Stage, now: float, every: float) -> str:
    left, so_far = stage.total - stage.done, now - stage.began
    new, measured = stage.speed()
    said = [f"{stage.what}: {stage.done:,}/{stage.total:,}" if stage.total else stage.what]
    if so_far < _SHOWN_S:
        return said[0]
    if measured > 0:
        said.append(_rate(new / measured))
    if measured > 0 and left > 0:
        said.append(f"{duration(left * measured / new)} left")
        if now - stage.at >= every:
            said.append(f"none for {duration(now - stage.at)}")
    else:
        said.append(f"{duration(so_far)}{' so far' if left > 0 or not stage.total else ''}")
    return ", ".join(said)


def _rate(per_second: float) -> str:
    """Return a speed in the unit in which it is at least 1."""
    for unit, seconds in (("second", 1), ("minute", 60)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:,.1f} per {unit}"
    return f"{per_second * 3600:,.1f} per hour"


def duration(seconds: float) -> str:
    """Return a time in words, such as 45 s, 12 min or 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
