"""The folder of a run.

    config.yaml            settings and fingerprints; a resumed run must have the same
    samples.jsonl          one line per question, appended and flushed as answers come
    samples.CONTROL.jsonl  the same for each control
    prompts.jsonl.gz       every prompt once, by its hash, which the samples refer to
    predictions.*          the answers in the benchmark's submission format
    run.trec               the ranking in TREC's run format
    results.json           scores in two sections, intervals, provenance
    report.html            all of this, for people

All files but samples and prompts are written under another name and renamed when complete, so that
a killed run leaves no partial file. One process at a time writes: it holds the folder's lock
(`ravqa.core.files`).
"""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ravqa.collections import trust
from ravqa.core.errors import UserError
from ravqa.core.files import LOCK_FILES, atomic_write, check_free, final_name, lock
from ravqa.core.settings import dump_yaml, read_yaml
from ravqa.core.texts import encodable
from ravqa.evaluation.schema import SCHEMA_VERSION, RunConfig
from ravqa.runs.prompts import OLD_PROMPTS, PROMPTS, PromptLog
from ravqa.runs.samples import SampleLog

MAIN = "main"
CONFIG = "config.yaml"
RESULTS = "results.json"
_OURS = {
    CONFIG,
    PROMPTS,
    OLD_PROMPTS,
    "run.trec",
    RESULTS,
    "report.html",
}
# Earlier versions split large reports into report-2.html and so on.
_NAMED = re.compile(r"samples(\..+)?\.jsonl|predictions\.\w+|report-\d+\.html")


class OutputFolder(ABC):
    """An output folder that is made, resumed or overwritten as the user said.

    Attributes:
        what: what it holds, for messages: "run".
        resume: whether what it holds is continued.
        marker: the file by which it is recognised.
    """

    what: ClassVar[str]
    marker: ClassVar[str]

    def __init__(
        self, path: Path, *, resume: bool = False, overwrite: bool = False, dry_run: bool = False
    ):
        """Check the folder; nothing is written or deleted yet.

        Args:
            resume: continue what the folder holds, or begin if it holds nothing yet, so that a job
                that was killed early can be started again by the same command.
            dry_run: nothing will be written, so an existing folder is accepted.

        Raises:
            UserError: it exists and neither `resume` nor `overwrite` is set; it holds files of
                another kind; it cannot be written; another process is writing there.
        """
        self.path = path
        self.resume = self._may_resume = resume
        self.overwrite = overwrite
        self._dry_run = dry_run
        self.look()
        if not dry_run:
            check_free(path, f"the {self.what}")

    @property
    def exists(self) -> bool:
        """Whether the folder already holds a run or study."""
        return (self.path / self.marker).is_file()

    @abstractmethod
    def is_leftover(self, entry: Path) -> bool:
        """Return whether an entry of a folder without `marker` was left by a killed process."""

    def is_own(self, entry: Path) -> bool:
        """Return whether an entry has the name of a file that is written here."""
        return entry.name == self.marker

    def look(self) -> None:
        """Check the folder, when it is opened and once more when it is locked.

        Raises:
            UserError: as the constructor.
        """
        path, exists = self.path, self.exists
        for entry in path.iterdir() if path.is_dir() else ():
            if self.is_own(entry) and entry.exists() and not entry.is_file():
                raise UserError(f"{entry} is not a regular file: move it away")
        if path.is_dir() and not exists and not all(map(self.is_leftover, path.iterdir())):
            raise UserError(f"{path} contains files but no {self.what}: choose another --output")
        self.resume = self._may_resume and exists
        if exists and not (self.resume or self.overwrite or self._dry_run):
            raise UserError(
                f"the output folder {path} exists: --resume continues it, --overwrite replaces it"
            )
        parent = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"the output folder {path} cannot be written: check {parent}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder for writing, from before `begin` to the end.

        Raises:
            UserError: another process (or object) writes there, or the folder cannot be written;
                the checks of the constructor, which are repeated, fail now.
        """
        with ExitStack() as stack:
            with self.writing():
                stack.enter_context(lock(self.path, f"the {self.what}"))
            self.look()
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn errors of the file system into one line about the folder."""
        try:
            yield
        except OSError as e:
            raise UserError(
                f"the output folder {self.path} cannot be written: {e.strerror or e}"
            ) from None


class RunDir(OutputFolder):
    """A run's folder."""

    what = "run"
    marker = CONFIG

    def is_leftover(self, entry: Path) -> bool:
        """Return whether a file belongs to a lock, or was left by a `write` that was killed."""
        return _temporary(entry)

    def is_own(self, entry: Path) -> bool:
        """Return whether an entry has the name of a run's file."""
        return is_own_name(entry.name)

    def begin(self, config: RunConfig) -> None:
        """Create the folder, without the old run, and write `config.yaml`; or resume a run.

        Call it after everything that can fail, so that a mistake does not destroy the old run.

        Raises:
            UserError: it cannot be written; the run to resume had other settings.
        """
        now = yaml.safe_load(dump_yaml(config))
        if self.resume:
            self._check(now)
        if trust.outside_of_run(now):  # the report reads these settings
            trust.remember(now)
        if self.resume:
            return
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            self._clear()
            self.write(CONFIG, dump_yaml(config))

    def _clear(self) -> None:
        # Only files of a run are deleted; the user's own stay.
        for file in self.path.iterdir():
            ours = is_own_name(file.name) or _temporary(file)
            if file.is_file() and ours and file.name not in LOCK_FILES:
                file.unlink()

    def check_resumed(self, known: Mapping[str, Any]) -> None:
        """Compare the run to resume, if there is one, with settings that are known already.

        Args:
            known: sections of `config.yaml`, not all with all of their keys; nothing else is
                compared.

        Raises:
            UserError: the run had other settings.
        """
        if not self.resume:
            return
        now = yaml.safe_load(dump_yaml(known))
        shared = {
            name: {key: section.get(key) for key in now[name]}
            if isinstance(section, dict) and name != "pipeline"
            else section
            for name, section in read_yaml(self.path / CONFIG).items()
            if name in now
        }
        self._compare(shared, now)

    def _check(self, now: Mapping[str, Any]) -> None:
        self._compare(read_yaml(self.path / CONFIG), now)

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        before, now = ({**config, **_pipeline_of(config)} for config in (before, now))
        if before != now:
            path = first_difference(before, now)
            raise UserError(
                f"the run in {self.path} had other settings ({path}): it cannot be resumed with "
                "these"
            )

    def write(self, name: str, text: str) -> None:
        """Write a file atomically; lone surrogates become "?"."""
        atomic_write(self.path / name, encodable(text))

    def samples_path(self, condition: str) -> Path:
        """Return the samples file of the run itself or of one of its controls."""
        return self.path / samples_name(condition)

    def read_samples(self, condition: str) -> SampleLog:
        """Return the samples of the run itself or of one of its controls; more can be appended.

        Raises:
            DataError: a line is broken (file and line are named), but for a last one that a kill
                left incomplete, which is removed.
        """
        return SampleLog(self.samples_path(condition))

    @cached_property
    def prompts(self) -> PromptLog:
        """The run's prompts; the folder must exist."""
        return PromptLog(self.path / PROMPTS)


def _pipeline_of(config: Mapping[str, Any]) -> dict[str, Any]:
    pipeline = config.get("pipeline")
    return {"pipeline": plain_settings(pipeline)} if isinstance(pipeline, dict) else {}


def plain_settings(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pipeline's settings without its description, which says them in words."""
    return {key: value for key, value in pipeline.items() if key != "description"}


def check_output(path: Path, *, overwrite: bool, own: str = "") -> None:
    """Refuse to overwrite a file, or to write one under the name of a run's own file.

    Args:
        overwrite: whether an existing file may be replaced.
        own: name of the run's file that the caller may write.

    Raises:
        UserError: it exists and is not to be replaced, or it is another file of a run.
    """
    if path.exists() and not overwrite:
        raise UserError(f"the output file {path} exists: --overwrite replaces it")
    if is_own_name(path.name) and path.name != own and (path.parent / "config.yaml").is_file():
        raise UserError(f"{path} is a file of a run: choose another --output")


def check_version(results: Mapping[str, Any], folder: Path) -> None:
    """Refuse results of another format version.

    Raises:
        UserError: they have another version, or none.
    """
    version = results.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{folder}: results of format {version}, but this version reads format "
            f"{SCHEMA_VERSION}: run it again, or score its answers with "
            f"`ravqa score {folder / 'samples.jsonl'}`"
        )


def is_own_name(name: str) -> bool:
    """Return whether a run writes a file of this name."""
    return name in _OURS or _NAMED.fullmatch(name) is not None


def samples_name(condition: str) -> str:
    """Return the name of the samples file of the run itself or of one of its controls."""
    return "samples.jsonl" if condition == MAIN else f"samples.{condition}.jsonl"


def _temporary(path: Path) -> bool:
    """Return whether a file belongs to a lock, or was left by a `write` that was killed."""
    if path.name in LOCK_FILES:
        return True
    whole = final_name(path.name)
    return whole is not None and is_own_name(whole)


def first_difference(before: Any, now: Any, path: str = "") -> str:
    """Return the first difference of two settings, as "key.path: A then, B now"."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(k for k in now if k not in before)]:
            if before.get(key) != now.get(key) or (key in before) != (key in now):
                return first_difference(
                    before.get(key), now.get(key), f"{path}.{key}" if path else str(key)
                )
    return f"{path}: {_short(before)} then, {_short(now)} now"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
