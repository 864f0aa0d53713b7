"""A-OKVQA's two official scores, as in allenai/aokvqa, evaluation/eval_predictions.py.

Neither cleans anything up. The loader leaves out the questions that the direct-answer score leaves
out, those that are marked as difficult to answer without the choices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ravqa.core.records import Question
from ravqa.metrics.base import AnswerMetric, AnswerRecord, Id, Submission
from ravqa.metrics.multiple_choice import MultipleChoice

if TYPE_CHECKING:
    from ravqa.metrics.judges.base import Judge

_ENOUGH = 3  # annotators who gave the answer, for a score of 1


def aokvqa_direct_answer(prediction: str, answers: Sequence[str]) -> float:
    """Return min(1, n / 3), where n annotators gave exactly this answer.

    Unlike VQA accuracy, no annotator is left out and no text is cleaned up.

    Args:
        prediction: the answer.
        answers: the annotators' answers, ten of them in the published files.

    Raises:
        ValueError: there are no answers.

    >>> aokvqa_direct_answer("rain", ["rain", "rain", "Rain"])
    0.6666666666666666
    """
    if not answers:
        raise ValueError("the direct-answer score needs annotators' answers")
    return min(1.0, answers.count(prediction) / _ENOUGH)


def _submission(key: str, answers: Mapping[Id, str]) -> Submission:
    """Return the leaderboard's file: an object with an entry {key: answer} per question."""
    rows = {str(q): {key: answer} for q, answer in answers.items()}
    return Submission(".json", json.dumps(rows, ensure_ascii=False, indent=0))


class AOKVQAMultipleChoice(MultipleChoice):
    """A-OKVQA's score of multiple-choice answers, over all questions."""

    name = "aokvqa_multiple_choice"
    label = "A-OKVQA multiple choice"
    rule = f"{MultipleChoice.rule}; over all questions (allenai/aokvqa)"
    prediction_key = "multiple_choice"

    def submission(self, answers: Mapping[Id, str]) -> Submission:
        """Return the leaderboard's file, with the multiple-choice answers alone."""
        return _submission(self.prediction_key, answers)


class AOKVQADirectAnswer(AnswerMetric):
    """A-OKVQA's score of free answers, over the questions that are not marked as difficult."""

    name = "aokvqa_direct_answer"
    label = "A-OKVQA direct answer"
    rule = (
        "min(1, n / 3), where n of ten annotators gave the prediction, letter by letter; over the "
        "questions that are not difficult_direct_answer (allenai/aokvqa)"
    )
    right = "one of the references"
    prediction_key = "direct_answer"

    def score(self, question: Question, record: AnswerRecord, judge: Judge | None = None) -> float:
        """Return `aokvqa_direct_answer` of the answer.

        Raises:
            ValueError: as `aokvqa_direct_answer`.
        """
        return aokvqa_direct_answer(record.answer or "", question.answers)

    def matches(self, question: Question, text: str) -> bool:
        """Return whether a text is one of the annotators' answers."""
        return text in question.answers

    def is_right(self, question: Question, record: AnswerRecord, score: float) -> bool:
        """Return whether the answer is one of the annotators'; a score may be fractional."""
        return score > 0

    def submission(self, answers: Mapping[Id, str]) -> Submission:
        """Return the leaderboard's file, with the direct answers alone."""
        return _submission(self.prediction_key, answers)
