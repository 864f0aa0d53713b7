"""Multiple choice: the rule for questions with choices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.records import Question
from ravqa.metrics.base import AnswerMetric, AnswerRecord

if TYPE_CHECKING:
    from ravqa.metrics.judges.base import Judge


class MultipleChoice(AnswerMetric):
    """1 if the answer is the text of the right choice, letter by letter."""

    name = "multiple_choice"
    label = "Multiple choice"
    rule = "1 if the prediction equals the right choice, letter by letter, else 0"
    right = "the right choice"
    scores_choices = True

    def score(self, question: Question, record: AnswerRecord, judge: Judge | None = None) -> float:
        """Return 1.0 or 0.0.

        Raises:
            ValueError: the question's right choice is not known.
        """
        if problem := self.problem(question):
            raise ValueError(f"question {question.question_id}: {problem}")
        return float(record.answer == question.right_choice)

    def problem(self, question: Question) -> str:
        """Return whether choices or the right one are missing."""
        if not question.choices:
            return "no choices"
        return "" if question.right_choice is not None else "the right choice is not known"
