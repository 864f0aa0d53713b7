"""Verdicts of people on answers, kept as a dataset of one's own questions.

    DIR/questions.jsonl   questions whose right answer is known
    DIR/open.jsonl        those whose answer is wrong, and nobody said what is right
    DIR/photos/           their images

Both files have the layout of `ravqa.datasets.files`. They are two because in one file either all
questions have answers, or none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from ravqa.core.errors import UserError
from ravqa.core.files import atomic_write
from ravqa.images.decode import image_bytes

ANSWERED, OPEN = "questions.jsonl", "open.jsonl"
"""The two files."""
_PHOTOS = "photos"
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What somebody said of an answer.

    Attributes:
        question_id: unique; a second verdict with the same id replaces the first.
        question: as it was asked.
        image: the photo that it was asked about, a path or encoded bytes.
        answer: the one that was shown.
        right: what the person says is right; None if that is not known.
        shown: what else is to be kept, such as the pipeline; values as in JSON.
    """

    question_id: str
    question: str
    image: Path | bytes | None
    answer: str
    right: str | None
    shown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        """The record, without its image."""
        row: dict[str, Any] = {"question_id": self.question_id, "question": self.question}
        if self.right is not None:
            row["answers"] = [self.right]
        return row | {"shown_answer": self.answer, **self.shown}


class Feedback:
    """A folder of verdicts. Any number of threads and processes may write to it."""

    def __init__(self, folder: Path):
        """Name the folder; it is created when the first verdict is kept."""
        self.folder = folder

    def check(self) -> None:
        """Raise UserError if the folder cannot be written to, or is something else."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--feedback {self.folder}: it is a file, where a folder is expected")

    def keep(self, verdict: Verdict) -> None:
        """Keep a verdict, in place of an earlier one with the same id.

        Raises:
            DataError: the image cannot be read.
            OSError: the folder cannot be written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        row = verdict.row
        if verdict.image is not None:
            row["image"] = self._photo(image_bytes(verdict.image))
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with FileLock(self.folder / ".lock"):
            for name in (ANSWERED, OPEN):
                before = self._lines(name)
                after = [text for text in before if _id(text) != verdict.question_id]
                if (name == ANSWERED) == (verdict.right is not None):
                    after.append(line)
                if after != before:
                    atomic_write(self.folder / name, "".join(after))

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        if not path.is_file():
            return []
        text = path.read_text(encoding="utf-8")
        return [f"{line}\n" for line in text.split("\n") if line.strip()]

    def _photo(self, data: bytes) -> str:
        """Keep an image under a hash of its bytes; return its path below the folder."""
        suffix = "jpg" if data.startswith(_JPEG) else "png"
        name = f"{_PHOTOS}/{hashlib.sha256(data).hexdigest()[:32]}.{suffix}"
        path = self.folder / name
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            atomic_write(path, data)
        return name


def _id(line: str) -> Any:
    try:
        return json.loads(line).get("question_id")
    except (ValueError, AttributeError):  # not ours: it stays
        return None
