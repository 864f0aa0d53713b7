"""Runs of a study, which do not print their tables."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.text import Text

from ravqa.core.factory import Session
from ravqa.core.progress import ProgressLines
from ravqa.evaluation.schema import RunResults
from ravqa.reports.report import report_runs
from ravqa.runs.console import Console
from ravqa.runs.lanes import Lane
from ravqa.runs.options import RunRequest
from ravqa.runs.run import run


class StudyConsole(Console):
    """Shows the progress of one run after another, and each remark once."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: set[str] = set()
        self._lock = threading.RLock()

    def note(self, text: str) -> None:
        """Print a remark once."""
        with self._lock:
            if text in self._noted:
                return
            self._noted.add(text)
        super().note(text)

    def bar(self, what: str, done: int, total: int | None) -> None:
        """Show a progress bar; several threads may."""
        with self._lock:
            super().bar(what, done, total)

    def remove(self, what: str) -> None:
        """Remove a progress bar, if it is shown."""
        with self._lock:
            if self._bars is not None and what in self._tasks:
                self._bars.remove_task(self._tasks.pop(what))

    def close(self) -> None:
        """Remove the progress bars, and forget unfinished stages."""
        with self._lock:
            super().close()

    def tell(self, text: str) -> None:
        """Print a line beside the progress of what is under way."""
        self.err.print(Text(text), soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line about the current step."""
        self.close()
        self.err.print(Text(text), soft_wrap=True)

    def heading(self, *_: Any, **__: Any) -> None:
        """Do nothing: the study prints what it runs."""

    def answered(self, results: RunResults) -> None:
        """Do nothing: the study's table comes at its end."""

    def results(self, results: RunResults, folder: Path) -> None:
        """Do nothing: the study's table comes at its end."""
        self.close()


class BesideConsole(StudyConsole):
    """Shows the progress of one of several runs that are under way at the same time."""

    def __init__(self, study: StudyConsole, name: str):
        """Print on the study's console, each line with the name of the run."""
        super().__init__()
        self.out, self.err = study.out, study.err
        self._study = study
        self._name = name
        self._shown: set[str] = set()
        self._lines = ProgressLines(self._write)

    def note(self, text: str) -> None:
        """Print a remark once in the study."""
        self._study.note(text)

    @contextmanager
    def status(self, what: str) -> Iterator[None]:
        """Show what is being done while the block runs."""
        if self.err.is_terminal:
            self._bar(what, 0, None)
            try:
                yield
            finally:
                self._remove([what])
        else:
            with self._lines.during(what):
                yield

    def progress(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a stage are finished."""
        if self.err.is_terminal:
            self._bar(what, done, total)
        else:
            self._lines(what, done, total)

    def close(self) -> None:
        """Remove the run's progress bars, and forget its unfinished stages."""
        self._lines.close()
        self._remove(list(self._shown))

    def _write(self, line: str) -> None:
        self.err.print(Text(f"{self._name}: {line}"), soft_wrap=True)

    def _bar(self, what: str, done: int, total: int | None) -> None:
        self._shown.add(what)
        self._study.bar(f"{self._name}: {what}", done, total)

    def _remove(self, shown: Sequence[str]) -> None:
        for what in shown:
            self._shown.discard(what)
            self._study.remove(f"{self._name}: {what}")


class QuietConsole(StudyConsole):
    """Shows nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        self._sink = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.out = self.err = RichConsole(file=self._sink, markup=False)

    @contextmanager
    def status(self, what: str) -> Iterator[None]:
        """Do nothing."""
        yield


def run_quietly(
    request: RunRequest, console: Console, session: Session, lane: Lane | None = None
) -> None:
    """Run `ravqa.runs.run.run` and write the report; always close the progress bars at the end."""
    try:
        folder = run(request, console, session, lane=lane)
        with session.turn:
            report_runs(folder, console, match=0, say=False)
    finally:
        console.close()
