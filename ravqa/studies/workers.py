"""Runs of a study in several processes, each of which reuses its parts in its next run."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ravqa.core.errors import ContractError, UserError, first_line
from ravqa.core.factory import Key, Session
from ravqa.runs.options import RunRequest

_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Task:
    """One run.

    Attributes:
        name: name for messages.
        stages: hashes of its stages: of two tasks that share one, the second waits until the first
            is finished, unless that stage is known to be done.
        reading: tasks with the same hash never run at the same time, since their prompts may
            overlap.
        affinity: tasks with the same one are given to the same process if possible.
        keep: parts that this task or a later one needs.
    """

    name: str
    request: RunRequest
    stages: frozenset[str]
    reading: str
    affinity: str
    keep: frozenset[Key]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run failed: a one-line message, and a traceback unless it was a user's mistake."""

    reason: str
    details: str | None = None


Finished = Callable[[int, Failure | None], object]
"""Called as finished(number of the task, failure or None)."""


def attempt(request: RunRequest, run: Callable[[RunRequest], object]) -> Failure | None:
    """Run; return what went wrong, if anything."""
    try:
        run(request)
    except UserError as e:
        raised = isinstance(e, ContractError) and e.__cause__ is not None  # by a part's own code
        return Failure(" ".join(str(e).split()), traceback.format_exc() if raised else None)
    except Exception as e:  # the other runs continue
        return Failure(f"{type(e).__name__}: {first_line(e)}", traceback.format_exc())
    return None


def run_in_processes(
    tasks: Sequence[Task],
    jobs: int,
    done: frozenset[str],
    started: Callable[[int], object],
    finished: Finished,
) -> None:
    """Run every task in one of `jobs` processes.

    If a process dies, its task fails and the process is replaced. If this process dies, the others
    exit.

    Args:
        done: hashes of stages that tasks need not wait for.
        started: called as started(number of the task).
    """
    queue = _Queue(tasks, done)
    workers = [_Worker(i, jobs) for i in range(min(jobs, len(tasks)))]
    try:
        while queue.left:
            for worker in workers:
                number = queue.next(worker.affinity) if worker.task is None else None
                if number is not None:
                    started(number)
                    worker.start(number, tasks[number])
            busy = [w.connection for w in workers if w.task is not None and w.connection]
            ready = wait(busy)
            for worker in (w for w in workers if w.connection in ready):
                task, failure = worker.result()
                queue.finish(task, failed=failure is not None)
                finished(task, failure)
    finally:
        for worker in workers:
            worker.stop()


class _Queue:
    """Queue of tasks that never starts one that would duplicate a running one's work."""

    def __init__(self, tasks: Sequence[Task], done: frozenset[str]):
        self._tasks = tasks
        self._waiting = list(range(len(tasks)))
        self._running: set[int] = set()
        self._done = set(done)

    @property
    def left(self) -> int:
        """Return the number of unfinished tasks."""
        return len(self._waiting) + len(self._running)

    def next(self, affinity: str | None) -> int | None:
        """Return the number of a task that may begin now; None if all must wait."""
        free = [i for i in self._waiting if self._may_begin(self._tasks[i])]
        if not free:
            return None
        number = next((i for i in free if self._tasks[i].affinity == affinity), free[0])
        self._waiting.remove(number)
        self._running.add(number)
        return number

    def finish(self, number: int, *, failed: bool) -> None:
        """Mark a task as ended."""
        self._running.remove(number)
        if not failed:
            self._done |= self._tasks[number].stages

    def _may_begin(self, task: Task) -> bool:
        running = [self._tasks[i] for i in self._running]
        busy = frozenset().union(*(other.stages for other in running)) - self._done
        return task.stages.isdisjoint(busy) and all(
            task.reading != other.reading for other in running
        )


class _Worker:
    """A process that runs one task after another."""

    def __init__(self, number: int, jobs: int):
        self._environment = _environment(number, jobs, os.environ)
        self.connection: Connection | None = None
        self._process: BaseProcess | None = None
        self.task: int | None = None
        self.affinity: str | None = None

    def start(self, number: int, task: Task) -> None:
        """Give it a task, creating the process if needed."""
        if self._process is None:
            # A forked copy of this process would share its threads' locks and its GPU state.
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            with _changed_environment(self._environment):  # read when libraries are imported
                self._process.start()
            theirs.close()
        assert self.connection is not None
        self.task, self.affinity = number, task.affinity
        with suppress(OSError):  # it has just died: `result` reports it
            self.connection.send((task.request, task.keep))

    def result(self) -> tuple[int, Failure | None]:
        """Return the number of its task, and how it ended."""
        assert self.task is not None
        assert self.connection is not None
        number, self.task = self.task, None
        try:
            return number, self.connection.recv()
        except (EOFError, OSError):
            code = self._end()
            return number, Failure(f"its process ended ({_ended(code)})")

    def stop(self) -> None:
        """Terminate the process, whatever it is doing."""
        if self._process is not None:
            self._process.terminate()
            self._end()

    def _end(self) -> int | None:
        assert self._process is not None
        assert self.connection is not None
        self._process.join()
        code = self._process.exitcode
        self.connection.close()
        self._process = self.connection = self.affinity = None
        return code


def _ended(code: int | None) -> str:
    return (
        f"signal {-code}: is there enough memory?"
        if code is not None and code < 0
        else f"code {code}"
    )


def _environment(number: int, jobs: int, given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of one of several processes: its share of cores and listed GPUs."""
    changes = {}
    if "OMP_NUM_THREADS" not in given:
        changes["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    devices = [device for device in given.get(_DEVICES, "").split(",") if device.strip()]
    if len(devices) > 1:
        changes[_DEVICES] = devices[number % len(devices)]
    return changes


@contextmanager
def _changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection) -> None:
    """Run tasks in a worker process until its connection is closed."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from ravqa.studies.quiet import QuietConsole, run_quietly

    console, session = QuietConsole(), Session()
    try:
        while True:
            request, keep = connection.recv()
            session.keep(keep)
            connection.send(attempt(request, lambda r: run_quietly(r, console, session)))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _die_with_parent() -> None:
    # A killed parent cannot end its workers, and two must never write to the same run.
    parent: Any = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
