"""The user's own questions and passages, as JSON lines or tables.

    DIR/questions.jsonl       (questions.csv, questions.tsv), or any such file named by --data
    DIR/passages.jsonl        (.csv, .tsv, .parquet; optional), unless --corpus names others
    DIR/...                   images, found below DIR by the names in `image`

Columns of the questions; lists stand as JSON lists, or in tables as `one|two`:

    question_id | id          unique
    question                  may be blank if there is an instruction
    image | img_path          path below the folder; blank for a text-only question
    image_id                  what the image is called; else its path
    answers | answer          accepted answers; blank if the file is not to be scored
    answer_eval               InfoSeek's forms of the answers, for `metric=infoseek`
    instruction, question_type, split
    pos_item_ids              ids of relevant passages
    pos_articles              names of relevant articles

Other columns go to `Question.extra`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ravqa.datasets import processed
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    ImageOptions,
    RetrievalMetric,
    options_of,
)
from ravqa.datasets.checks import gather
from ravqa.datasets.corpus import Corpus
from ravqa.datasets.reading import JSON_LINES, TABLES, Row, read_rows, suffix_of
from ravqa.errors import DataError, UserError
from ravqa.images import ImageFolder
from ravqa.records import Question
from ravqa.registry import METRICS

_ID = ("question_id", "id")
_IMAGE = ("image", "img_path")
_ANSWERS = ("answers", "answer")
_KNOWN = {
    *(*_ID, *_IMAGE, *_ANSWERS),
    *("question", "image_id", "answer_eval", "instruction", "question_type", "split"),
    *("pos_item_ids", "pos_articles"),
}
_ALL = "all"  # the split of all questions, whatever their own is called
_PASSAGES = (*JSON_LINES, *TABLES, ".parquet")


class Options(ImageOptions):
    """Options of user files.

    Attributes:
        metric: name of the answer metric (`ravqa ls metrics`).
    """

    metric: str = "exact_match"


def load_jsonl(request: DatasetRequest) -> Dataset:
    """Questions in JSON lines.

    Raises:
        UserError: no such file or folder.
        DataError: a broken file, or a broken record unless those are skipped.
    """
    return _load(request, "jsonl", JSON_LINES)


def load_csv(request: DatasetRequest) -> Dataset:
    """Questions in a CSV or TSV file.

    Raises:
        UserError: as `load_jsonl`.
        DataError: as `load_jsonl`.
    """
    return _load(request, "csv", TABLES)


def _load(request: DatasetRequest, name: str, suffixes: Sequence[str]) -> Dataset:
    options = options_of(Options, request)
    METRICS.check(options.metric, "--dataset-option metric")
    if request.data is None:
        raise UserError(f"--dataset {name} needs --data: a file, or a folder with questions.{name}")
    path = _question_file(request.data, suffixes)
    folder = path.parent
    images = ImageFolder(options.images or folder)
    stream = _Questions(path, images, options, request)
    questions, digest = gather(stream, request, path)
    corpus = None
    if request.data.is_dir():
        beside = [folder / f"passages{s}" for s in _PASSAGES]
        corpus = next((Corpus.read(p) for p in beside if p.is_file()), None)
    return Dataset(
        name=name,
        label=path.stem if path.stem != "questions" else folder.resolve().name,
        split=request.split or _ALL,
        questions=questions,
        metric=options.metric if stream.answered else None,
        fingerprint=digest,
        corpus=corpus,
        info={"file": path.name, "metric": options.metric},
        retrieval_metrics=stream.retrieval_metrics,
    )


def _question_file(data: Path, suffixes: Sequence[str]) -> Path:
    if data.is_dir():
        for suffix in suffixes:
            if (data / f"questions{suffix}").is_file():
                return data / f"questions{suffix}"
        raise UserError(f"no questions{suffixes[0]} in {data}")
    if not data.is_file():
        raise UserError(f"no such file or folder: {data}")
    if suffix_of(data) not in suffixes:
        raise UserError(f"{data}: a {' or '.join(suffixes)} file is expected")
    return data


class _Questions:
    """The file's questions; after they were read, what there is to score them by."""

    def __init__(
        self, path: Path, images: ImageFolder, options: Options, request: DatasetRequest
    ) -> None:
        self._path = path
        self._images = images
        self._options = options
        self._request = request
        self._table = suffix_of(path) in TABLES
        self.answered = False
        self._positives = False

    @property
    def retrieval_metrics(self) -> Sequence[RetrievalMetric]:
        """Recall by ids if the file names relevant passages, and pseudo recall if answers."""
        return (
            *((RetrievalMetric("recall_at_k", 5),) if self._positives else ()),
            *((RetrievalMetric("pseudo_recall_at_k", 5),) if self.answered else ()),
        )

    def __iter__(self) -> Iterator[Question]:
        problems, split = self._request.problems, self._request.split
        seen: set[Any] = set()
        for where, row in read_rows(self._path):
            if split not in (None, _ALL) and processed.text(row, "split") != split:
                continue
            ids = (row.get(column) for column in _ID)
            question_id = next((i for i in ids if isinstance(i, int | str) and i != ""), None)
            if question_id is None:
                problems.report(where, "no question id (column question_id or id)")
            elif question_id in seen:
                problems.report(where, f"duplicate question id {question_id!r}", question_id)
            else:
                seen.add(question_id)
                try:
                    question = self._question(row, question_id)
                except DataError as e:
                    problems.report(where, str(e), question_id)
                    continue
                self.answered |= bool(question.answers)
                self._positives |= bool(question.pos_item_ids)
                yield question

    def _question(self, row: Row, question_id: int | str) -> Question:
        asked, instruction = processed.text(row, "question"), processed.text(row, "instruction")
        if asked is None and instruction is None:
            raise DataError("no 'question'")
        name = processed.text(row, *_IMAGE)
        answers = next((found for c in _ANSWERS if (found := self._list(row, c))), ())
        answer_eval = row.get("answer_eval")
        if answer_eval is not None and not isinstance(answer_eval, list):
            answer_eval = [answer_eval]
        image_id = row.get("image_id")
        return Question(
            question_id=question_id,
            question=asked or "",
            image=None if name is None else self._images.path(name),
            image_id=image_id
            if isinstance(image_id, int)
            else processed.text(row, "image_id") or name,
            answers=answers,
            answer_eval=tuple(answer_eval or answers),
            instruction=instruction,
            question_type=processed.text(row, "question_type"),
            split=processed.text(row, "split"),
            pos_item_ids=self._list(row, "pos_item_ids"),
            pos_articles=self._list(row, "pos_articles"),
            extra={key: value for key, value in row.items() if key not in _KNOWN},
        )

    def _list(self, row: Row, column: str) -> tuple[str, ...]:
        value = row.get(column)
        if isinstance(value, str) and self._table:
            value = value.split("|")
        if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            raise DataError(f"{column!r}: a list of strings is expected")
        return processed.texts({column: value}, column)
