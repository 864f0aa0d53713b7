"""Examples in a JSON-lines file: one question with its passages a line.

    {"question": "What is this?", "image": "photos/1.jpg", "positive": {"text": "A koala ..."},
     "negatives": [{"id": "p7", "text": "A wombat ..."}], "answers": ["koala"]}

    id            of the question; default: the line's number
    question      its text; may be empty if there is an instruction
    instruction   put before the question, with a ":" between
    image         path below the file's folder
    features      instead of an image: {"file": "x.npy", "row": 3}, see below
    answers       passages that hold one of them are never negatives
    positive      a relevant passage, or "positives": a list of them
    negatives     passages that are not relevant

A passage is the id of one in the corpus, or an object with text and, if wanted, id, title, image,
features and score (a reranker's, for distillation). An id stands for the same passage everywhere.

Features are what a vision tower made of an image: row `row` of an array in a .npy file, or of the
only array of a .npz file, below the file's folder: [rows, width], or [rows, 1 + patches, width]
with the global feature first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Passage, Question
from ravqa.core.settings import Strict, fingerprint, validate
from ravqa.corpora.tables import read_jsonl
from ravqa.images.folder import ImageFolder, inside

FEATURES = "features"
"""Key of questions' and passages' `extra` for stored features."""


@dataclass(frozen=True, slots=True)
class StoredFeatures:
    """Where the features of an image are: a row of an array in a file."""

    file: Path
    row: int


class _Features(Strict):
    file: str
    row: int = Field(ge=0)


class _Passage(Strict):
    text: str
    id: str | None = None
    title: str | None = None
    image: str | None = None
    features: _Features | None = None
    score: float | None = None


class _Row(Strict):
    question: str = ""
    id: int | str | None = None
    instruction: str | None = None
    image: str | None = None
    features: _Features | None = None
    answers: tuple[str, ...] = ()
    positive: str | _Passage | None = None
    positives: tuple[str | _Passage, ...] = ()
    negatives: tuple[str | _Passage, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """One line: the question, and its passages by id."""

    question: Question
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict)


def read_examples(
    path: Path, corpus: Mapping[str, Passage] | None, limit: int | None = None
) -> tuple[list[Record], Mapping[str, Passage]]:
    """Return the examples of a file, and all passages: the corpus's, then the file's own.

    Raises:
        DataError: a broken line (file and line are named), an image or file of features that does
            not exist, an id that is in no corpus, or that two different passages have.
    """
    reader = _Reader(path, corpus)
    records = []
    for number, row in read_jsonl(path):
        records.append(reader.record(number, row))
        if len(records) == limit:
            break
    return records, reader.passages


class _Reader:
    def __init__(self, path: Path, corpus: Mapping[str, Passage] | None):
        self.path = path
        self.passages: dict[str, Passage] = dict(corpus or {})
        self._images = ImageFolder(path.parent)

    def record(self, number: int, values: dict[str, Any]) -> Record:
        where = f"{self.path}, line {number}"
        try:
            row = validate(_Row, values, where)
        except UserError as e:
            raise DataError(str(e)) from None
        if not (row.question.strip() or row.instruction):
            raise DataError(f"{where}: neither a question nor an instruction")
        scores: dict[str, float] = {}
        given = (*(() if row.positive is None else (row.positive,)), *row.positives)
        positives = tuple(self._passage(p, scores, where) for p in given)
        negatives = tuple(self._passage(p, scores, where) for p in row.negatives)
        if both := set(positives) & set(negatives):
            raise DataError(f"{where}: the passage {min(both)!r} is both positive and negative")
        question = Question(
            question_id=number if row.id is None else row.id,
            question=row.question,
            image=self._image(row.image, where),
            answers=row.answers,
            instruction=row.instruction,
            pos_item_ids=positives,
            extra=self._extra(row.features, row.image, where),
        )
        return Record(question, positives, negatives, scores)

    def _passage(self, given: str | _Passage, scores: dict[str, float], where: str) -> str:
        if isinstance(given, str):
            if given not in self.passages:
                raise DataError(f"{where}: no passage {given!r} in the corpus or on earlier lines")
            return given
        content = given.model_dump(exclude={"id", "score"})
        name = given.id or f"passage-{fingerprint(content)[:16]}"
        passage = Passage(
            name,
            given.text,
            given.title,
            self._image(given.image, where),
            extra=self._extra(given.features, given.image, where),
        )
        before = self.passages.setdefault(name, passage)
        if before != passage:
            raise DataError(f"{where}: the id {name!r} already stands for another passage")
        if given.score is not None:
            scores[name] = given.score
        return name

    def _image(self, name: str | None, where: str) -> Path | None:
        if name is None:
            return None
        try:
            found = self._images.find(name)
        except DataError as e:
            raise DataError(f"{where}: {e}") from None
        if found is None:
            raise DataError(f"{where}: no image {name!r} in {self.path.parent}")
        return found

    def _extra(
        self, given: _Features | None, image: str | None, where: str
    ) -> dict[str, StoredFeatures]:
        if given is None:
            return {}
        if image is not None:
            raise DataError(f"{where}: either an image or its features, not both")
        try:
            file = inside(self.path.parent, given.file)
        except DataError as e:
            raise DataError(f"{where}: {e}") from None
        if not file.is_file():
            raise DataError(f"{where}: no file of features {given.file!r} in {self.path.parent}")
        return {FEATURES: StoredFeatures(file, given.row)}
