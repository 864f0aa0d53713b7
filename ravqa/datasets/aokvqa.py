"""A-OKVQA in its published form.

Official files (allenai.org/project/a-okvqa), in DIR:

    aokvqa_v1p0_{train,val,test}.json            one list of questions
    {train,val,test}2017/{image_id:012d}.jpg     COCO 2017

LAVIS's copies of these files name the image in `image` (val2014/COCO_val2014_000000461751.jpg).
Hub copies are read from DIR with their Parquet files or from `hf:OWNER/NAME`; their
`direct_answers` may be the text of a Python list.

There are two tasks with a score each (`ravqa.metrics.aokvqa`), so that a run is about one of them:

    direct_answer      the question alone, without those that are marked as difficult to answer
                       so (`difficult_direct_answer`), as far as the split is scored
    multiple_choice    all questions, with their choices

The test split has no answers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Question
from ravqa.core.texts import number_of
from ravqa.corpora import hub, row_images
from ravqa.corpora.tables import Row, read_json
from ravqa.corpora.values import identity, is_blank, kind_of, list_of, text, text_of
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    ImageOptions,
    RetrievalMetric,
    options_of,
    pick_split,
)
from ravqa.datasets.checks import gather, official_id, usable
from ravqa.datasets.processed import coco_number
from ravqa.images.folder import ImageFolder

SPLITS = ("val", "train", "test")
RETRIEVAL_METRICS = (RetrievalMetric("pseudo_recall_at_k", 5),)

LAYOUT = (
    "It needs the files of allenai.org/project/a-okvqa (aokvqa_v1p0_val.json; the same for train "
    "and test) and the COCO 2017 images (cocodataset.org) as val2017/000000000042.jpg"
)

_DIFFICULT = "difficult_direct_answer"


class Options(ImageOptions):
    """Options of A-OKVQA.

    Attributes:
        setting: the task: answer freely, or choose among the choices.
    """

    setting: Literal["direct_answer", "multiple_choice"] = "direct_answer"


def question_file(split: str) -> str:
    """Return the official name of a split's file."""
    return f"aokvqa_v1p0_{split}.json"


def load(request: DatasetRequest) -> Dataset:
    """Load a split.

    Raises:
        UserError: the folder or split does not exist.
        DataError: a broken file, or a broken record unless those are skipped.
    """
    options = options_of(Options, request)
    data = request.data
    if data is None:
        raise UserError(f"--dataset aokvqa needs --data DIR. {LAYOUT}")
    official: list[str] = []
    if hub.hub_name(data) is None:
        if not data.is_dir():
            raise UserError(f"the data folder {data} does not exist. {LAYOUT}")
        official = [s for s in SPLITS if (data / question_file(s)).is_file()]
        if not official and not hub.has_table(data, None):
            raise UserError(f"no A-OKVQA questions in {data}. {LAYOUT}")
    present = official or hub.split_names(data, None)
    aliases = {s: s for s in present or SPLITS} | {s: s for s in SPLITS}
    if "validation" in present:
        aliases["val"] = "validation"
    split, notes = pick_split(request.split, aliases["val"], aliases, present, data)
    source = data / question_file(split) if official else data
    rows = _Rows(source, split, bool(official))
    images = hub.image_folder(data, options.images)
    stream = _Questions(rows, images, options, request)
    questions, digest = gather(stream, request, source)
    left_out = rows.difficult() if stream.leaves_out else []
    if left_out:
        count = number_of(len(left_out), "difficult question is", "difficult questions are")
        notes.append(f"{count} left out, as by the official direct-answer score")
    metric = f"aokvqa_{options.setting}"
    return Dataset(
        name="aokvqa",
        label="A-OKVQA",
        split=split,
        questions=questions,
        metric=metric if stream.scored else None,
        submission=metric,
        fingerprint=digest,
        info={"setting": options.setting, "left_out": len(left_out)},
        notes=notes,
        retrieval_metrics=RETRIEVAL_METRICS,
        left_out=left_out,
    )


class _Rows:
    """The records of a split and their places, from the official file or a table."""

    def __init__(self, source: Path, split: str, official: bool):
        """Read the official file, or find the table.

        Raises:
            DataError: the file is not a list of records.
        """
        self.split = split
        self._path = source
        self._table = None if official else hub.Table(source, None, split)
        self._records = read_json(source) if official else []
        if not isinstance(self._records, list):
            raise DataError(f"{source}: a list of questions is expected")

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        if self._table is not None:
            yield from self._table.read()
            return
        for number, record in enumerate(self._records, 1):
            known = isinstance(record, dict) and "question_id" in record
            name = f" (id {record['question_id']})" if known else ""
            yield f"{self._path}, question {number}{name}", record

    def difficult(self) -> list[int | str]:
        """Return the ids of the questions that are marked as difficult."""
        columns = ("question_id", _DIFFICULT)
        rows = self._table.read(columns) if self._table else iter(self)
        return [
            row["question_id"]
            for _, row in rows
            if isinstance(row, dict) and row.get(_DIFFICULT) is True and "question_id" in row
        ]


class _Questions:
    """The questions of a split.

    Attributes:
        scored: whether the split has answers; the test split has none.
        leaves_out: whether difficult questions are left out.
    """

    def __init__(self, rows: _Rows, images: ImageFolder, options: Options, request: DatasetRequest):
        self._rows = rows
        self._images = images
        self._choose = options.setting == "multiple_choice"
        self._request = request
        self.scored = rows.split != "test"
        self.leaves_out = self.scored and not self._choose

    def __iter__(self) -> Iterator[Question]:
        rows = (
            (where, row)
            for where, row in self._rows
            if not (self.leaves_out and isinstance(row, dict) and row.get(_DIFFICULT) is True)
        )
        return usable(rows, official_id, self._question, self._request)

    def _question(self, row: Row, question_id: int | str) -> tuple[Question, str]:
        """Return the question, and why its image is unavailable."""
        asked = text(row, "question")
        if asked is None:
            raise DataError("no 'question'")
        if self.leaves_out and not isinstance(row.get(_DIFFICULT), bool):
            got = kind_of(row[_DIFFICULT]) if _DIFFICULT in row else "nothing"
            raise DataError(f"{_DIFFICULT!r}: true or false is expected, not {got}")
        image, image_id, missing = self._image(row)
        answers = _texts(row, "direct_answers") if self.scored else ()
        if self.leaves_out and not any(answer.strip() for answer in answers):
            raise DataError("no 'direct_answers'")
        choices = _texts(row, "choices") if self._choose else ()
        question = Question(
            question_id=question_id,
            question=asked,
            image=image,
            image_id=image_id,
            answers=answers,
            split=self._rows.split,
            choices=_checked_choices(choices) if self._choose else (),
            correct_choice=_correct_choice(row) if self._choose and self.scored else None,
            extra={"rationales": list(_texts(row, "rationales"))} if self.scored else {},
        )
        return question, missing

    def _image(self, row: Row) -> tuple[Path, int | str | None, str]:
        """Return the image's path and id, and why it is unavailable."""
        image_id = identity(row, "image_id")
        found = row_images.image_of(row, self._images, by_stem=True)
        if found.path is not None:
            if image_id is None:
                number = coco_number((found.source if found.held else found.name) or "")
                image_id = found.name if number is None else number
            return found.path, image_id, found.missing
        if not isinstance(image_id, int) or image_id < 0:
            raise DataError("no image: 'image_id' is not a number, and there is no 'image'")
        official = f"{self._rows.split}2017/{image_id:012d}.jpg"
        image, missing = self._images.look(official, by_stem=True)
        return image, image_id, missing


def _texts(row: Row, column: str) -> tuple[str, ...]:
    """Return a list of texts, blank ones as "", from a list or from the text of a Python list."""
    value = row.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise DataError(f"{column!r} is not the text of a list: {value[:40]!r}") from None
    value = [] if is_blank(value) else list_of(value, column)
    if not isinstance(value, list):
        raise DataError(f"{column!r}: a list of texts is expected, not {kind_of(value)}")
    return tuple(text_of(item, column) or "" for item in value)


def _checked_choices(choices: Sequence[str]) -> tuple[str, ...]:
    if not choices:
        raise DataError("no 'choices'")
    if not all(choice.strip() for choice in choices):
        raise DataError("'choices': one is blank")
    return tuple(choices)


def _correct_choice(row: Row) -> int:
    place = row.get("correct_choice_idx")
    if not isinstance(place, int) or isinstance(place, bool):
        got = "nothing" if place is None else kind_of(place)
        raise DataError(f"'correct_choice_idx': a position from 0 is expected, not {got}")
    return place
