"""The user's own questions and passages, as JSON lines or tables.

    DIR/questions.jsonl       (questions.csv, questions.tsv), or any such file named by --data
    DIR/passages.jsonl        (.csv, .tsv, .parquet; optional), unless --corpus names others
    DIR/...                   images, found below DIR by the names in `image`

Columns of the questions; lists are JSON lists, in tables also `one|two`. Values follow the rules of
`ravqa.corpora.values`:

    question_id | id          unique
    question                  may be blank if there is an instruction
    image | img_path          path below the folder, or the image in base64; blank for a text-only
                              question (other names and forms: `ravqa.corpora.row_images`)
    image_id                  the image's id; by default its path
    answers | answer          accepted answers; blank in every row if the file is not scored
    answer_eval               InfoSeek's forms of the answers, for `metric=infoseek`
    choices                   the answers to choose from, in order
    correct_choice            the text of the right one; or correct_choice_idx, its position from 0
    instruction, question_type, split
    pos_item_ids              ids of relevant passages
    pos_articles              names of relevant articles

A question with a right choice and without answers has that choice as its answer. Other columns go
to `Question.extra`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError, UserError
from ravqa.core.files import check_file
from ravqa.core.locations import real_path
from ravqa.core.records import Question
from ravqa.corpora import row_images
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.remarks import Remarks
from ravqa.corpora.tables import JSON_LINES, TABLES, Row, TableForm, read_rows, suffix_of
from ravqa.corpora.values import cell_items, identity, is_blank, list_of, text, texts_of
from ravqa.datasets import m2kr
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    ImageOptions,
    RetrievalMetric,
    options_of,
)
from ravqa.datasets.checks import gather, usable
from ravqa.images.folder import ImageFolder
from ravqa.metrics import METRICS
from ravqa.metrics.base import AnswerMetric

_ID = ("question_id", "id")
_ANSWERS = ("answers", "answer")
_KNOWN = {
    *(*_ID, *_ANSWERS, *row_images.HELD, *row_images.NAMED),
    *("question", "image_id", "answer_eval", "instruction", "question_type", "split"),
    *("pos_item_ids", "pos_articles", "choices", "correct_choice", "correct_choice_idx"),
}
_ALL = "all"  # the split of all questions, whatever their own splits
_PASSAGES = (*JSON_LINES, *TABLES, ".parquet")


class Options(ImageOptions):
    """Options of user files.

    Attributes:
        metric: name of the answer metric (`ravqa ls metrics`).
        quotes: whether quotes around a field of a TSV file are syntax or part of the text; None if
            the file can be read in only one way.
        encoding: of a CSV or TSV file; None to recognize it.
        delimiter: the character between the fields of a CSV file, or "tab"; None to recognize it.
    """

    metric: str = "exact_match"
    quotes: bool | None = None
    encoding: str | None = None
    delimiter: str | None = None


def load_jsonl(request: DatasetRequest) -> Dataset:
    """Load questions from JSON lines.

    Raises:
        UserError: the file or folder does not exist.
        DataError: a broken file, or a broken record unless those are skipped.
    """
    return _load(request, "jsonl", JSON_LINES)


def load_csv(request: DatasetRequest) -> Dataset:
    """Load questions from a CSV or TSV file.

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
    remarks = Remarks(request.problems.on_error)
    if request.data.is_dir():
        beside = [folder / f"passages{s}" for s in _PASSAGES]
        found = (Corpus.read(p, remarks=remarks) for p in beside if p.is_file())
        corpus = next(found, None)
    named = path.stem == "questions" and request.data.is_dir()
    return Dataset(
        name=name,
        label=real_path(folder).name if named else path.stem,
        split=request.split or _ALL,
        questions=questions,
        metric=options.metric if stream.answered else None,
        fingerprint=digest,
        corpus=corpus,
        info={"file": path.name, "metric": options.metric},
        notes=[*remarks.lines(), *stream.notes],
        retrieval_metrics=stream.retrieval_metrics,
    )


def _question_file(data: Path, suffixes: Sequence[str]) -> Path:
    if data.is_dir():
        for suffix in suffixes:
            if (data / f"questions{suffix}").is_file():
                return data / f"questions{suffix}"
        raise UserError(f"no questions{suffixes[0]} in {data}")
    check_file(data)
    if not data.is_file():
        raise UserError(f"no such file or folder: {data}")
    if suffix_of(data) not in suffixes:
        raise UserError(f"{data}: a {' or '.join(suffixes)} file is expected")
    return data


class _Questions:
    """The questions of a file; after reading, also the metrics that can score them.

    Attributes:
        answered: whether the questions have answers.
        chosen: whether the right choice of a question is known.
    """

    def __init__(
        self, path: Path, images: ImageFolder, options: Options, request: DatasetRequest
    ) -> None:
        self._path = path
        self._images = images
        self._form = TableForm(options.quotes, options.encoding, options.delimiter)
        self._metric: AnswerMetric = METRICS.get(options.metric)()
        self._request = request
        self._table = suffix_of(path) in TABLES
        self.answered = False
        self.chosen = False
        self._positives = False

    def _any_answers(self) -> bool:
        """Return whether the file has answers; if so, every question needs some."""
        for _, row in self._rows():
            with contextlib.suppress(DataError):  # `__iter__` reports the row
                if self._answers(row) or _named_choice(row):
                    return True
        return False

    def _rows(self) -> Iterator[tuple[str, Row]]:
        split = self._request.split
        for where, row in read_rows(self._path, form=self._form):
            if split in (None, _ALL) or row.get("split") == split:
                yield where, row

    def _answers(self, row: Row) -> tuple[str, ...]:
        return next((given for c in _ANSWERS if (given := self._list(row, c))), ())

    @property
    def retrieval_metrics(self) -> Sequence[RetrievalMetric]:
        """Recall by ids if the file names relevant passages; pseudo recall if it has answers."""
        return (
            *((RetrievalMetric("recall_at_k", 5),) if self._positives else ()),
            *((RetrievalMetric("pseudo_recall_at_k", 5),) if self.answered else ()),
        )

    @property
    def notes(self) -> list[str]:
        """What is to be known of how the questions are scored."""
        if not self.chosen or self._metric.scores_choices:
            return []
        return [
            f"the questions have choices, and are scored by {self._metric.name}: --dataset-option "
            "metric=multiple_choice scores them by the right choice"
        ]

    def __iter__(self) -> Iterator[Question]:
        self.answered = self._any_answers()
        for question in usable(self._rows(), _question_id, self._question, self._request):
            self._positives |= bool(question.pos_item_ids)
            yield question

    def _question(self, row: Row, question_id: int | str) -> tuple[Question, str]:
        """Return the question, and why its image is unavailable."""
        asked, instruction = text(row, "question"), text(row, "instruction")
        if asked is None and instruction is None:
            raise DataError("no 'question'")
        found = row_images.image_of(row, self._images)
        image_id = identity(row, "image_id")
        if image_id is None:
            image_id = found.name
        choices = self._choices(row)
        correct = _correct_choice(row, choices)
        answers = self._answers(row)
        if not answers and correct is not None:
            answers = (choices[correct],)
        if self.answered and not answers:
            raise DataError("no answers, where other questions of the file have some")
        answer_eval = m2kr.evaluation_forms(self._items(row, "answer_eval"))
        question = Question(
            question_id=question_id,
            question=asked or "",
            image=found.path,
            image_id=image_id,
            answers=answers,
            answer_eval=tuple(answer_eval or answers),
            instruction=instruction,
            question_type=text(row, "question_type"),
            split=text(row, "split"),
            pos_item_ids=self._list(row, "pos_item_ids"),
            pos_articles=self._list(row, "pos_articles"),
            choices=choices,
            correct_choice=correct,
            extra={key: value for key, value in row.items() if key not in _KNOWN},
        )
        if self.answered and (reason := self._metric.problem(question)):
            raise DataError(reason)
        self.chosen |= correct is not None
        missing = found.missing
        if found.path is None and not missing:
            missing = row_images.unread_image(row, _KNOWN)
        return question, missing

    def _choices(self, row: Row) -> tuple[str, ...]:
        items = self._items(row, "choices")
        found = texts_of(items, "choices")
        if found and len(found) < len(list_of(items, "choices")):
            raise DataError("'choices': one is blank")
        return found

    def _list(self, row: Row, column: str) -> tuple[str, ...]:
        return texts_of(self._items(row, column), column)

    def _items(self, row: Row, column: str) -> Any:
        return cell_items(row.get(column)) if self._table else row.get(column)


def _question_id(row: Row) -> int | str:
    try:
        question_id = identity(row, *_ID)
    except DataError as e:
        raise DataError(f"no question id: {e}") from None
    if question_id is None:
        raise DataError(f"no question id (column {' or '.join(_ID)})")
    return question_id


_PLACE = "correct_choice_idx"


def _named_choice(row: Row) -> bool:
    return not (is_blank(row.get("correct_choice")) and is_blank(row.get(_PLACE)))


def _correct_choice(row: Row, choices: Sequence[str]) -> int | None:
    """Return the position of the right choice, if the row names it by text or by position."""
    named, place = text(row, "correct_choice"), text(row, _PLACE)
    if named is not None and place is not None:
        raise DataError(f"'correct_choice' and {_PLACE!r} are both given: which one is meant?")
    if named is not None:
        if named not in choices:
            raise DataError(f"'correct_choice' is {named!r}, which is none of the choices")
        return list(choices).index(named)
    if place is None:
        return None
    if not (place.isascii() and place.isdecimal()):
        raise DataError(f"{_PLACE!r} is {place!r}: a position from 0 is expected")
    if int(place) >= len(choices):
        raise DataError(f"{_PLACE!r} is {place}, from 0, but there are {len(choices)} choices")
    return int(place)
