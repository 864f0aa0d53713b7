"""A judge's verdict alone, on any question with accepted texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.metrics.base import AnswerMetric, AnswerRecord
from ravqa.metrics.evqa import BETWEEN
from ravqa.metrics.infoseek import normalise
from ravqa.metrics.judges.asking import Asked, certain, judge_settings, judged
from ravqa.metrics.released.base import ALL, texts

if TYPE_CHECKING:
    from ravqa.metrics.judges.base import Judge


class Judged(AnswerMetric):
    """1 if the judge accepts the answer for one of the references; it is asked about each once."""

    name = "judge"
    label = "Judge"
    rule = "1 if the judge gives at least 0.5 that the answer means the same as a reference, else 0"
    uses_judge = True
    needs_judge = True
    forms = ALL

    def score(self, question: Question, record: AnswerRecord, judge: Judge | None = None) -> float:
        """Return 1.0 or 0.0; 0 without a verdict.

        Raises:
            UserError: there is no judge.
            PromptError, ServerError: the judge failed.
        """
        return certain(self.scores([question], [record], judge)[0])

    def scores(
        self,
        questions: Sequence[Question],
        records: Sequence[AnswerRecord],
        judge: Judge | None = None,
    ) -> list[float | Failure]:
        """Return the scores; the judge is asked once, for all answers.

        Raises:
            UserError: there is no judge.
        """
        if judge is None:
            raise UserError("the rule 'judge' asks a judge: give one (--judge)")
        asked = [
            (row, Asked(question.question, reference.replace(BETWEEN, ","), record.answer))
            for row, (question, record) in enumerate(zip(questions, records, strict=True))
            if record.answer is not None
            for reference in dict.fromkeys(texts(question))
        ]
        return judged([0.0] * len(records), asked, judge)

    def settings(self, judge: Judge | None = None) -> dict[str, Any]:
        """Return the judge."""
        return judge_settings(judge)

    def matches(self, question: Question, text: str) -> bool:
        """Return whether a text equals a reference after InfoSeek's clean-up; no judge is asked."""
        return normalise(text) in {normalise(reference) for reference in texts(question)}
