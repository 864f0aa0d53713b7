"""The samples of a run while it answers: in their file, with their places in memory."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from sys import intern
from typing import Any, cast

from ravqa.core.errors import DataError
from ravqa.core.texts import encodable
from ravqa.evaluation.schema import Sample, read_samples


class SampleLog(Mapping[int | str, Sample]):
    """The samples of one condition, by question id, each read from the file when it is asked for.

    A sample takes some 100 bytes of memory, whatever is in it.
    """

    def __init__(self, path: Path):
        """Find the samples of an interrupted run; remove a last line that a kill left incomplete.

        Raises:
            DataError: another line is broken (file and line are named).
        """
        self.path = path
        self._rows: dict[int | str, int] = {}  # numbers of lines, from 0
        self._starts = array("q", [0])  # of the lines, and of the next one
        if not path.is_file():
            return
        self._starts.extend(_ends(path))
        self._rows = {sample["question_id"]: number - 1 for number, sample in read_samples(path)}

    def append(self, samples: Iterable[Sample]) -> None:
        """Append lines and flush them to disk; lone surrogates become "?"."""
        lines = {
            sample["question_id"]: encodable(json.dumps(sample, ensure_ascii=False) + "\n").encode()
            for sample in samples
        }
        with self.path.open("ab") as out:
            out.write(b"".join(lines.values()))
            out.flush()
            os.fsync(out.fileno())
        for question, line in lines.items():
            self._rows[question] = len(self._starts) - 1
            self._starts.append(self._starts[-1] + len(line))

    def sort(self, questions: Iterable[int | str]) -> None:
        """Have the samples of these questions, in their order, and no others."""
        self._rows = {question: self._rows[question] for question in questions}

    def loaded(self) -> dict[int | str, Sample]:
        """Return all samples, in memory."""
        return dict(self.items())

    def __getitem__(self, question: int | str) -> Sample:
        row = self._rows[question]
        start, end = self._starts[row], self._starts[row + 1]
        try:
            with self.path.open("rb", buffering=0) as file:
                line = os.pread(file.fileno(), end - start, start)
        except OSError as e:
            raise DataError(f"{self.path} cannot be read: {e.strerror or e}") from None
        return cast(Sample, json.loads(line, object_pairs_hook=_shared))

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, question: object) -> bool:
        return question in self._rows


def _shared(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose names take memory once for all samples."""
    return {intern(name): value for name, value in pairs}


def _ends(path: Path) -> Iterator[int]:
    """Yield where the whole lines of a file end; remove a last line without its end.

    Raises:
        DataError: the file cannot be read.
    """
    end = 0
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield (end := end + len(line))
                else:
                    os.truncate(path, end)
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror or e}") from None
