"""The check of all images before work starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ravqa.datasets.base import DatasetRequest
from ravqa.images import broken_images
from ravqa.records import Question


def check_images(questions: Sequence[Question], request: DatasetRequest) -> list[Question]:
    """The questions whose image is there and decodes; the others are reported as problems.

    Every image is opened once, however many questions ask about it.

    Raises:
        DataError: a broken image, unless broken records are skipped.
    """
    paths = list(dict.fromkeys(q.image for q in questions if isinstance(q.image, Path)))
    broken = broken_images(paths)
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
