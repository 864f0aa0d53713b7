"""InfoSeek's official toolkit, edchengg/infoseek_eval, with its mean over the given predictions.

ReflectiVA, ReAG, WikiSeeker, OMGM and mKG-RAG score by copies of it. `--adjust_score` of the first
two drops references without a prediction and so changes no number.
"""

from __future__ import annotations

from collections.abc import Sequence

from ravqa.core.errors import PromptError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.infoseek import InfoSeek, infoseek_score, numbers_stop, question_type_of
from ravqa.metrics.released.base import INFOSEEK, ReleasedRule, Source


def kind_of(question: Question) -> str:
    """Return the question's type in lower case: string, time or numerical."""
    return (question.question_type or question_type_of(question.answer_eval)).lower()


def check_numbers(text: str) -> None:
    """Refuse a text at which the official parser stops with an error.

    Raises:
        PromptError: it holds such a number.
    """
    if number := numbers_stop(text):
        raise PromptError(f"the released code stops at the number {number!r} in the prediction")


class InfoSeekRule(InfoSeek, ReleasedRule):
    """What rules share that aggregate as InfoSeek's toolkit does: answered questions alone."""

    forms = INFOSEEK
    aggregate = "harmonic mean of the two splits' rounded means, over answered questions"

    def counted(
        self, records: Sequence[AnswerRecord], outcomes: Sequence[float | Failure]
    ) -> list[bool]:
        """Return which questions have a prediction: the toolkit leaves the others out."""
        return [record.answer is not None for record in records]

    score = ReleasedRule.score
    settings = ReleasedRule.settings


class Official(InfoSeekRule):
    """The official rule."""

    name = "infoseek.official"
    label = "InfoSeek, official toolkit"
    rule = "exact match of strings, or a number in the reference's range"
    source = Source(
        "edchengg/infoseek_eval",
        "bec0c4c306b00d1380983aed353b76853d8c1aba",
        "infoseek_eval.py",
        "evaluate",
    )
    published = (
        "BLIP-2 8.06 and 12.51 (its README); by copies of it ReflectiVA 40.1, ReAG, OMGM, mKG-RAG, "
        "BERAG (their repositories)"
    )

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0; see `infoseek_score`."""
        if kind_of(question) == "numerical":
            check_numbers(text)
        return infoseek_score(text, question.answer_eval, kind_of(question))
