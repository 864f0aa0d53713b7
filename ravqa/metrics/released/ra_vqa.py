"""RA-VQA, LinWeizheDragon/Retrieval-Augmented-Visual-Question-Answering: exact match.

Its InfoSeek score leaves the loop over the questions at the first number in range, so that it is a
mean over the questions before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ravqa.core.errors import PromptError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.metrics import vqa
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.infoseek import range_problem
from ravqa.metrics.released.base import INFOSEEK, VQA, ReleasedRule, Source, texts

_REPOSITORY = "LinWeizheDragon/Retrieval-Augmented-Visual-Question-Answering"
_COMMIT = "9b2b65681267fc64f4b6209122ed129607a39713"
_FILE = "src/metrics/metrics_processors.py"


class ExactMatch(ReleasedRule):
    """Its exact match, for the best draft."""

    name = "ravqa.em"
    label = "RA-VQA, exact match"
    rule = "the answer is one of the annotators' answers, all after VQA's clean-up"
    forms = VQA
    source = Source(_REPOSITORY, _COMMIT, _FILE, "compute_exact_match, exact_match_at_1")

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0."""
        return float(vqa.is_answer(text, question.answers))


class ForInfoSeek(ReleasedRule):
    """Its InfoSeek score, on a prefix of the questions."""

    name = "ravqa.infoseek"
    label = "RA-VQA, InfoSeek"
    rule = "exact match, all after VQA's clean-up"
    aggregate = "mean over the questions before the first number in its range, which ends the loop"
    forms = INFOSEEK
    source = Source(_REPOSITORY, _COMMIT, _FILE, "compute_exact_match_with_numeric_values")
    published = "PreFLMR's InfoSeek 30.65"

    def problem(self, question: Question) -> str:
        """Return what is wrong with the references, if anything."""
        forms = question.answer_eval
        numbers = any(isinstance(form, Mapping) for form in forms)
        return super().problem(question) or (range_problem("numerical", forms) if numbers else "")

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0.

        Raises:
            PromptError: the prediction is a number in range, which ends the loop.
        """
        answer = vqa.normalise(text.lower())
        form = question.answer_eval[0] if question.answer_eval else None
        if isinstance(form, Mapping) and (number := _number(answer)) is not None:
            low, high = form["range"]
            if low <= number <= high:
                raise PromptError(_ENDED)
        return float(answer in {vqa.normalise(r.lower()) for r in texts(question)})

    def counted(
        self, records: Sequence[AnswerRecord], outcomes: Sequence[float | Failure]
    ) -> list[bool]:
        """Return True for the questions before the first number in range."""
        ends = [isinstance(outcome, Failure) for outcome in outcomes]
        before = ends.index(True) if True in ends else len(ends)
        return [i < before for i in range(len(ends))]


_ENDED = "a number in range, at which the released code leaves the loop over the questions"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
