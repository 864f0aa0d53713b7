"""Runs of a study, which do not print their tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.text import Text

from ravqa.core.factory import Session
from ravqa.evaluation.schema import RunResults
from ravqa.reports.report import report_runs
from ravqa.runs.console import Console
from ravqa.runs.options import RunRequest
from ravqa.runs.run import run


class StudyConsole(Console):
    """Shows the progress of one run after another, and each remark once."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: set[str] = set()

    def note(self, text: str) -> None:
        """Print a remark once."""
        if text not in self._noted:
            self._noted.add(text)
            super().note(text)

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


def run_quietly(request: RunRequest, console: Console, session: Session) -> None:
    """Run `ravqa.runs.run.run` and write the report; always close the progress bars at the end."""
    try:
        report_runs(run(request, console, session), console, match=0, say=False)
    finally:
        console.close()
