"""The check of all images before work starts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ravqa.datasets.base import DatasetRequest
from ravqa.datasets.images import open_image
from ravqa.errors import DataError
from ravqa.records import Question

_THREADS = 4


def check_images(questions: Sequence[Question], request: DatasetRequest) -> list[Question]:
    """The questions whose image is there and decodes; the others are reported as problems.

    Every image is opened once, however many questions ask about it.

    Raises:
        DataError: a broken image, unless broken records are skipped.
    """
    paths = list(dict.fromkeys(q.image for q in questions if isinstance(q.image, Path)))
    with ThreadPoolExecutor(_THREADS) as pool:
        broken = {
            path: reason
            for path, reason in zip(paths, pool.map(_problem, paths), strict=True)
            if reason
        }
    good = []
    for question in questions:
        reason = broken.get(question.image) if isinstance(question.image, Path) else None
        if reason:
            request.problems.report(
                f"question {question.question_id}", reason, question.question_id
            )
        else:
            good.append(question)
    return good


def _problem(path: Path) -> str:
    try:
        open_image(path, preview=True)
    except DataError as e:
        return str(e)
    return ""
