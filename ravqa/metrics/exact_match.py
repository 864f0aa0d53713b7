"""Exact match: the rule for custom questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.records import Question
from ravqa.metrics.base import AnswerMetric, AnswerRecord
from ravqa.metrics.infoseek import normalise

if TYPE_CHECKING:
    from ravqa.metrics.judges.base import Judge


class ExactMatch(AnswerMetric):
    """1 if the answer equals an accepted one, after InfoSeek's clean-up."""

    name = "exact_match"
    label = "Exact match"
    forms = frozenset({"texts"})
    rule = (
        "1 if an accepted answer equals the prediction in lower case, without ASCII punctuation "
        "and articles (InfoSeek's clean-up), else 0"
    )

    def score(self, question: Question, record: AnswerRecord, judge: Judge | None = None) -> float:
        """Return 1.0 or 0.0.

        Raises:
            ValueError: the question has no accepted answer.
        """
        if not question.answers:
            raise ValueError("exact match needs at least one accepted answer")
        given = normalise(record.answer or "")
        return float(any(given == normalise(answer) for answer in question.answers))
