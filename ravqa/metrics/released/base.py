"""The contract of released rules: scoring code that other projects published, kept as it is.

A released rule gives what the code of its source gives, faults included, so that published numbers
can be made again and compared with the official ones. None of them is a dataset's own score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ravqa.core.errors import PromptError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.metrics.base import AnswerMetric, AnswerRecord, Form
from ravqa.metrics.judges.asking import Asked, certain, judge_settings, judged

if TYPE_CHECKING:
    from ravqa.metrics.judges.base import Judge

INFOSEEK: frozenset[Form] = frozenset({"infoseek"})
VQA: frozenset[Form] = frozenset({"vqa"})
EVQA: frozenset[Form] = frozenset({"evqa"})
ALL: frozenset[Form] = frozenset({"infoseek", "vqa", "evqa", "texts"})


@dataclass(frozen=True, slots=True)
class Source:
    """Where a rule's code was published.

    Attributes:
        repository: on GitHub, as owner/name.
        commit: the state that the rule is equal to.
        function: what in the file computes the score.
    """

    repository: str
    commit: str
    file: str
    function: str

    def __str__(self) -> str:
        return f"{self.repository} @ {self.commit[:8]}, {self.file}: {self.function}"


class ReleasedRule(AnswerMetric):
    """A rule as released code has it.

    Attributes:
        source: where the code is.
        aggregate: how the scores of questions become one number.
        published: numbers that it made, with where they stand; blank if none is known.
    """

    source: ClassVar[Source]
    aggregate: ClassVar[str] = "mean over all questions"
    published: ClassVar[str] = ""

    @abstractmethod
    def of_text(self, question: Question, text: str) -> float:
        """Return the score of a prediction, 0 to 1.

        Raises:
            ValueError: the released code stops at the question's references.
            PromptError: it stops at the prediction, or leaves it without a score.
        """

    def score(self, question: Question, record: AnswerRecord, judge: Judge | None = None) -> float:
        """Return `of_text` of the answer.

        Raises:
            ValueError, PromptError: as `of_text`.
        """
        return float(self.of_text(question, record.answer or ""))

    def scores(
        self,
        questions: Sequence[Question],
        records: Sequence[AnswerRecord],
        judge: Judge | None = None,
    ) -> list[float | Failure]:
        """Return the scores; a failure where the released code stops, or gives no score."""
        found: list[float | Failure] = []
        for question, record in zip(questions, records, strict=True):
            try:
                answered = record.answer is not None
                found.append(self.score(question, record, judge) if answered else 0.0)
            except PromptError as e:
                found.append(Failure.of(e))
        return found

    def settings(self, judge: Judge | None = None) -> dict[str, Any]:
        """Return the source of the rule."""
        return {**super().settings(judge), "source": str(self.source)}

    def matches(self, question: Question, text: str) -> bool:
        """Return whether a text scores 1; no, where the released code gives no score."""
        return self.scores([question], [AnswerRecord(text)]) == [1.0]


class JudgedRule(ReleasedRule):
    """A released rule that asks a judge about what it does not settle itself."""

    uses_judge = True
    needs_judge = True

    @abstractmethod
    def settled(self, question: Question, text: str) -> float | None:
        """Return the score if no judge is needed, else None; raises as `of_text`."""

    @abstractmethod
    def asked(self, question: Question, text: str) -> Sequence[Asked]:
        """Return what the judge is asked; one yes is enough."""

    def of_text(self, question: Question, text: str) -> float:
        """Return the score without a judge, as if it found nothing right."""
        return self.settled(question, text) or 0.0

    def score(self, question: Question, record: AnswerRecord, judge: Judge | None = None) -> float:
        """Return the score of one answer; 0 without a verdict.

        Raises:
            ValueError, PromptError, ServerError: as `of_text`; the judge failed.
        """
        return certain(self.scores([question], [record], judge)[0])

    def scores(
        self,
        questions: Sequence[Question],
        records: Sequence[AnswerRecord],
        judge: Judge | None = None,
    ) -> list[float | Failure]:
        """Return the scores; the judge is asked once, about all that is not settled."""
        found: list[float | Failure] = []
        open_rows: list[tuple[int, Asked]] = []
        for row, (question, record) in enumerate(zip(questions, records, strict=True)):
            if record.answer is None:
                found.append(0.0)
                continue
            try:
                score = self.settled(question, record.answer)
            except PromptError as e:
                found.append(Failure.of(e))
                continue
            found.append(score or 0.0)
            if score is None:
                open_rows += [(row, pair) for pair in self.asked(question, record.answer)]
        return judged(found, open_rows, judge)

    def settings(self, judge: Judge | None = None) -> dict[str, Any]:
        """Return the source of the rule and its judge."""
        return {**super().settings(judge), **judge_settings(judge)}


def texts(question: Question) -> tuple[str, ...]:
    """Return the references of rules that only know texts.

    InfoSeek's strings of `answer_eval`; for numbers, whose forms are records, `answer`.
    """
    return tuple(form for form in question.answer_eval if isinstance(form, str)) or question.answers
