"""A run's folder: what was asked, one line per question, the ranking, the results.

    config.yaml            resolved settings and fingerprints; a resumed run must match them
    samples.jsonl          one line per question, appended and flushed as answers come
    samples.CONTROL.jsonl  the same for each control
    predictions.json       the answers in the benchmark's own submission form
    run.trec               the ranking in TREC's run format
    results.json           scores in two sections, intervals, provenance

All but the samples are written beside and renamed, so that a killed run leaves no half file.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ravqa.config import dump_yaml
from ravqa.errors import DataError, UserError

MAIN = "main"
_OURS = {"config.yaml", "run.trec", "results.json", "predictions.json", "predictions.jsonl"}


class RunDir:
    """An output folder, made, resumed or overwritten as the user said."""

    def __init__(self, path: Path):
        self.path = path
        self._new = False

    @classmethod
    def open(
        cls, path: Path, config: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> RunDir:
        """Make the folder and write `config.yaml`, or take up the run that is in it.

        Raises:
            UserError: it exists and neither `resume` nor `overwrite` is set; it holds something
                that is not a run; it cannot be written; the run to resume had other settings.
        """
        run = cls(path)
        try:
            if path.is_dir() and any(path.iterdir()):
                if not (path / "config.yaml").is_file():
                    raise UserError(f"{path} holds files but no run: choose another --output")
                if not resume and not overwrite:
                    raise UserError(
                        f"the output folder {path} exists: --resume goes on with it, "
                        "--overwrite replaces it"
                    )
                if overwrite:
                    run._clear()
                else:
                    run._check(config)
                    return run
            run._new = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            run.write("config.yaml", dump_yaml(config))
        except OSError as e:
            raise UserError(
                f"the output folder {path} cannot be written: {e.strerror or e}"
            ) from None
        return run

    def discard_if_new(self) -> None:
        """Take the folder away again if this object made it and nothing was answered yet."""
        if self._new and [p.name for p in self.path.iterdir()] == ["config.yaml"]:
            (self.path / "config.yaml").unlink()
            self.path.rmdir()

    def _clear(self) -> None:
        # Only files that a run makes: whatever else the user keeps there stays.
        for file in self.path.iterdir():
            ours = file.name in _OURS or (
                file.name.startswith("samples.") and file.suffix == ".jsonl"
            )
            if file.is_file() and ours:
                file.unlink()

    def _check(self, config: Mapping[str, Any]) -> None:
        try:
            before = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as e:
            raise UserError(f"{self.path}/config.yaml cannot be read: {e}") from None
        now = yaml.safe_load(dump_yaml(config))
        if before != now:
            path = _first_difference(before, now)
            raise UserError(
                f"the run in {self.path} had other settings ({path}): it cannot be resumed with "
                "these"
            )

    def write(self, name: str, text: str) -> None:
        """Write a whole file: beside it first, then renamed."""
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self.path)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.path / name)
        except BaseException:
            os.unlink(temporary)
            raise

    def samples_path(self, condition: str) -> Path:
        """The samples file of the run itself or of one of its controls."""
        name = "samples.jsonl" if condition == MAIN else f"samples.{condition}.jsonl"
        return self.path / name

    def read_samples(self, condition: str) -> dict[int | str, dict[str, Any]]:
        """Samples by question id; a last line that was torn by a kill is cut off the file.

        Raises:
            DataError: another line is broken (file and line are named).
        """
        path = self.samples_path(condition)
        if not path.is_file():
            return {}
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        samples: dict[int | str, dict[str, Any]] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                sample = json.loads(line)
                samples[sample["question_id"]] = sample
            except (ValueError, TypeError, KeyError):
                raise DataError(f"{path}, line {number}: not a sample") from None
        return samples

    def append_samples(self, condition: str, samples: Iterable[Mapping[str, Any]]) -> None:
        """Append lines and see them to the disk."""
        text = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        with self.samples_path(condition).open("a", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())


def _first_difference(before: Any, now: Any, path: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(k for k in now if k not in before)]:
            if before.get(key) != now.get(key) or (key in before) != (key in now):
                return _first_difference(
                    before.get(key), now.get(key), f"{path}.{key}" if path else str(key)
                )
    return f"{path}: {_short(before)} then, {_short(now)} now"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
