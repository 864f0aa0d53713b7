"""The folder of a training run.

    config.yaml     the settings, and fingerprints of model and data; a resumed run has the same
    metrics.jsonl   one line per step and per validation
    last/           the last checkpoint in its usual format, with what resuming needs (training.pt)
    best/           the checkpoint with the best validation, in its usual format
    results.json    the outcome: steps, best figures, what trained
    report.html     all of this, for people

A checkpoint is written beside its final place and exchanged when complete, so that a killed run
leaves a whole one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ravqa.core.errors import DataError, UserError
from ravqa.core.files import LOCK_FILES, atomic_write, final_name, folder_written_beside
from ravqa.core.settings import dump_yaml, read_yaml
from ravqa.core.stored import parsed_json
from ravqa.runs.folder import OutputFolder, first_difference

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
REPORT = "report.html"
LAST, BEST = "last", "best"
_OLD = ".old"
_FILES = frozenset({CONFIG, METRICS, RESULTS, REPORT})
_FOLDERS = frozenset({LAST, BEST, LAST + _OLD, BEST + _OLD})


class TrainingFolder(OutputFolder):
    """A training run's folder."""

    what = "training"
    marker = CONFIG

    def is_own(self, entry: Path) -> bool:
        """Return whether an entry has the name of a file of a training run."""
        return entry.name in _FILES

    def is_leftover(self, entry: Path) -> bool:
        """Return whether an entry belongs to a lock, or was left by a killed write."""
        return entry.name in LOCK_FILES or final_name(entry.name) in _FILES | _FOLDERS

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Create the folder, without an old run; or check that a run to resume is the same.

        Raises:
            UserError: it cannot be written; it holds something else than training; the run to
                resume had other settings, model or data.
        """
        now = yaml.safe_load(dump_yaml(identity))
        if self.exists:
            before = read_yaml(self.path / CONFIG)
            if before.get("training") != now["training"]:
                raise UserError(
                    f"{self.path} holds no training of a {now['training']}: choose another --output"
                )
            if self.resume and before != now:
                raise UserError(
                    f"the training in {self.path} had other settings, model or data "
                    f"({first_difference(before, now)}): it cannot be resumed with these"
                )
        if self.resume:
            return
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                (self.path / name).unlink(missing_ok=True)
            for name in _FOLDERS:
                shutil.rmtree(self.path / name, ignore_errors=True)
            atomic_write(self.path / CONFIG, dump_yaml(identity))

    # -- checkpoints -------------------------------------------------------------------------

    @contextmanager
    def replaced(self, name: str) -> Iterator[Path]:
        """Yield a new folder to fill, which then takes the place of `last` or `best`."""
        path, old = self.path / name, self.path / (name + _OLD)
        with self.writing():
            self._settle(name)
            new = self.path / f"{name}.new"
            shutil.rmtree(new, ignore_errors=True)
            with folder_written_beside(new) as filled:
                yield filled
            if path.exists():
                path.rename(old)
            new.rename(path)
            shutil.rmtree(old, ignore_errors=True)

    def _settle(self, name: str) -> None:
        """Finish or undo an exchange that a kill interrupted."""
        path, old = self.path / name, self.path / (name + _OLD)
        if not path.exists() and old.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)

    def last(self) -> Path | None:
        """Return the last checkpoint; None if nothing was saved yet."""
        self._settle(LAST)
        path = self.path / LAST
        return path if path.is_dir() else None

    # -- figures -----------------------------------------------------------------------------

    def log(self, values: Mapping[str, Any]) -> None:
        """Append a line of figures."""
        with self.writing(), (self.path / METRICS).open("a", encoding="utf-8") as out:
            out.write(json.dumps(values) + "\n")

    def flush(self) -> None:
        """Make sure that all lines are on disk, before a checkpoint that follows them."""
        path = self.path / METRICS
        if path.exists():
            with path.open("rb") as lines:
                os.fsync(lines.fileno())

    def figures(self, until: int | None = None) -> list[dict[str, Any]]:
        """Return the lines of figures.

        Args:
            until: remove those of later steps from the file; they will be written again.

        Raises:
            DataError: a line before the last is broken.
        """
        path = self.path / METRICS
        if not path.is_file():
            return []
        lines = path.read_bytes().split(b"\n")
        found: list[dict[str, Any]] = []
        for number, line in enumerate(lines[:-1], 1):
            try:
                value = parsed_json(line)
                step = value["step"]
            except (ValueError, TypeError, KeyError) as e:
                raise DataError(f"{path}, line {number}: not a line of figures ({e})") from None
            if until is None or step <= until:
                found.append(value)
        if until is not None:
            atomic_write(path, "".join(json.dumps(value) + "\n" for value in found))
        return found

    def write(self, name: str, text: str) -> None:
        """Write a file atomically."""
        with self.writing():
            atomic_write(self.path / name, text)
