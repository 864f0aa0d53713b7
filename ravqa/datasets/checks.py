"""Checks on a stream of questions: limit, images, and fingerprint."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ravqa.core.errors import DataError
from ravqa.core.records import Question
from ravqa.corpora.disk import keep
from ravqa.corpora.tables import Row
from ravqa.corpora.values import identity
from ravqa.datasets.base import DatasetRequest
from ravqa.images.decode import broken_images

Id = TypeVar("Id", str, int | str)

_encode = json.JSONEncoder(default=str).encode
_CHUNK = 512  # questions whose images are checked together


def gather(
    questions: Iterable[Question], request: DatasetRequest, source: object
) -> tuple[Sequence[Question], str]:
    """Return the usable questions, and a fingerprint of everything that affects their scores.

    Images are checked before the questions are used in any other way; missing and broken ones are
    counted and listed.

    Args:
        questions: in order, read as needed.
        source: where they come from, for messages.

    Raises:
        DataError: an image is missing or broken, unless broken records are skipped; or there is no
            usable question.
    """
    digest = hashlib.sha256()

    def fingerprinted(stream: Iterable[Question]) -> Iterator[Question]:
        for question in stream:
            digest.update(_encode(_content(question)).encode() + b"\n")
            yield question

    limit = None if request.limit is None else min(request.limit, sys.maxsize)
    limited = itertools.islice(questions, limit)
    checked = _checked(limited, request) if request.need_images else limited
    kept = keep(fingerprinted(checked))
    if not kept:
        raise DataError(f"{source}: no usable question")
    return kept, digest.hexdigest()[:32]


def official_id(record: Any) -> int | str:
    """Return the `question_id` of a record in a file of VQA's form.

    Raises:
        DataError: it has none, or is no object.
    """
    if not isinstance(record, dict):
        raise DataError("an object is expected")
    question_id = identity(record, "question_id")
    if question_id is None:
        raise DataError("no 'question_id'")
    return question_id


def usable(
    records: Iterable[tuple[str, Row]],
    id_of: Callable[[Row], Id],
    make: Callable[[Row, Id], tuple[Question, str]],
    request: DatasetRequest,
    *,
    id_column: str = "question id",
) -> Iterator[Question]:
    """Yield the question of each record; those that cannot be used are reported.

    An id may be a number or its digits: 7 and "7" are one id, as in files of predictions.

    Args:
        records: locations and records.
        id_of: returns a record's id, or raises DataError.
        make: returns the question, and why its image is unavailable ("" if it is not).
        id_column: what ids are called in messages.
    """
    seen: set[str] = set()
    for where, row in records:
        question_id = None
        try:
            question_id = id_of(row)
            if str(question_id) in seen:
                raise DataError(f"duplicate {id_column} {question_id!r}")
            seen.add(str(question_id))
            question, missing = make(row, question_id)
        except DataError as e:
            request.problems.report(where, str(e), question_id)
            continue
        if missing and request.need_images:
            request.problems.image(where, missing, question_id, _names(question))
        else:
            yield question


def check_images(questions: Iterable[Question], request: DatasetRequest) -> list[Question]:
    """Return the questions whose image exists and decodes; report the others as problems.

    Raises:
        DataError: a broken image, unless broken records are skipped.
    """
    return list(_checked(questions, request))


def _checked(questions: Iterable[Question], request: DatasetRequest) -> Iterator[Question]:
    """Yield the questions whose image decodes, opening each image only once."""
    stream = iter(questions)
    # Hashes of paths: for a million images they take less memory than the paths.
    seen: set[int] = set()
    broken: dict[Path, str] = {}
    while chunk := list(itertools.islice(stream, _CHUNK)):
        paths = dict.fromkeys(q.image for q in chunk if isinstance(q.image, Path))
        new = [path for path in paths if hash(path) not in seen]
        seen.update(map(hash, new))
        broken |= broken_images(new)
        for question in chunk:
            reason = broken.get(question.image) if isinstance(question.image, Path) else None
            if reason is None:
                yield question
            else:
                where = f"question {question.question_id}"
                request.problems.image(where, reason, question.question_id, _names(question))
    request.problems.count_images()


def _names(question: Question) -> tuple[object, ...]:
    """Return what a question's image is called."""
    return question.image_id, question.image if isinstance(question.image, Path) else None


def _content(q: Question) -> list[object]:
    """Return what a question's answers and scores depend on, except the image's bytes."""
    return [
        q.question_id,
        q.question,
        q.image_id,
        q.answers,
        q.answer_eval,
        q.question_type,
        q.split,
        q.instruction,
        q.pos_item_ids,
        q.pos_articles,
        asdict(q.description) if q.description else None,
        *([q.choices, q.correct_choice] if q.choices else []),
    ]
