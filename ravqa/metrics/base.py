"""The contract of answer metrics: the rules by which answers are scored.

A metric is a class in a file of its own, registered by its name. All
that runs, studies, comparisons, reports and submission files know of a rule is declared here.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ravqa.core.contracts import check_count
from ravqa.core.errors import broken
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.core.settings import Strict
from ravqa.metrics.statistics.intervals import Interval, PairedTest, bootstrap, paired_test

if TYPE_CHECKING:
    from ravqa.metrics.judges.base import Judge

Id = int | str

Form = Literal["infoseek", "vqa", "evqa", "texts"]
"""What a question gives to score with: InfoSeek's `answer_eval`, answers of several annotators,
E-VQA's answers with a question type, or accepted texts alone."""


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """The answer to a question, with all that a rule may read.

    Attributes:
        answer: the short answer; None where the question was not answered.
        raw: what the reader generated, uncut; None if unknown.
        row: the prediction as in its file: a line of samples.jsonl, or of a submission.
    """

    answer: str | None
    raw: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Submission:
    """A file of predictions in a benchmark's format.

    Attributes:
        suffix: suffix of the file's name, after "predictions".
    """

    suffix: str
    text: str

    @property
    def file(self) -> str:
        """The file's name."""
        return f"predictions{self.suffix}"


def percent(scores: Sequence[float]) -> float:
    """Return the mean of scores from 0 to 1 in percent, to four decimals.

    That is more than are shown, so that rounding for display does not round twice (67.6471 is 67.6,
    not 67.7).
    """
    return round(100 * sum(scores) / len(scores), 4)


class AnswerMetric(ABC):
    """A rule by which answers are scored.

    Attributes:
        name: the registered name; every number that the rule makes carries it.
        label: its name in tables ("VQA accuracy"); the unit is percent.
        rule: the rule in words, with its source.
        right: when an answer counts as right, to end the sentence "right is ...".
        uses_judge: whether the rule asks a judge, if one is given.
        scores_choices: whether the rule scores answers by the question's right choice.
        prediction_key: key of an answer in files of predictions that are one object, {id: {key:
            answer}} or {id: answer}; blank if the benchmark has no such files.
        needs_judge: whether the rule is another one without a judge.
        forms: the forms of questions that it is made for; empty if that is not known.
        wants: what an answer must hold for the rule to find anything in it, such as a tag.
        thread_safe: whether several threads may score answers at the same time; a rule that keeps
            nothing from one answer to the next is.
    """

    class Config(Strict):
        """The rule's options; empty unless a metric defines its own."""

    name: ClassVar[str]
    label: ClassVar[str]
    rule: ClassVar[str]
    right: ClassVar[str] = "a score of 1"
    uses_judge: ClassVar[bool] = False
    scores_choices: ClassVar[bool] = False
    prediction_key: ClassVar[str] = ""
    needs_judge: ClassVar[bool] = False
    forms: ClassVar[frozenset[Form]] = frozenset()
    wants: ClassVar[str] = ""
    thread_safe: ClassVar[bool] = True

    def __init__(self, config: Config | None = None):
        """Take the rule's validated options; None for their defaults."""
        self.config = self.Config() if config is None else config

    @abstractmethod
    def score(self, question: Question, record: AnswerRecord, judge: Judge | None = None) -> float:
        """Return the score of an answer, 0 to 1; called only for answered questions.

        Raises:
            ValueError: the question's references cannot be used for scoring.
        """

    def scores(
        self,
        questions: Sequence[Question],
        records: Sequence[AnswerRecord],
        judge: Judge | None = None,
    ) -> Sequence[float | Failure]:
        """Return `score` of each question; a question without an answer scores 0.

        A rule that asks a judge returns a failure where the score hangs on a verdict that the judge
        did not give; it counts as 0.

        Raises:
            ValueError: as `score`.
        """
        return [
            0.0 if record.answer is None else self._number(self.score(question, record, judge))
            for question, record in zip(questions, records, strict=True)
        ]

    def _number(self, score: Any) -> float:
        if not isinstance(score, Real):
            got = type(score).__name__
            raise broken(self, "metric", f"it returned from score a {got}, not a number")
        return float(score)

    def problem(self, question: Question) -> str:
        """Return why a question cannot be scored, blank if it can; called when data is loaded."""
        return "" if question.answers else "no answers"

    def counted(
        self, records: Sequence[AnswerRecord], outcomes: Sequence[float | Failure]
    ) -> list[bool]:
        """Return which questions are in the aggregate: all, unless the rule leaves some out.

        Args:
            records, outcomes: of each question, in the dataset's order; outcomes as of `scores`.
        """
        return [True] * len(outcomes)

    def summary(self, questions: Sequence[Question], scores: Sequence[float]) -> dict[str, Any]:
        """Return the dataset's `score` in percent, as the rule aggregates it.

        Args:
            scores: of each question, 0 to 1; at least one.

        Returns:
            `score`: percent, or None if the rule has none. `mean`, only for a rule whose score is
            not a mean: the mean in percent, for which results then give intervals and tests. Other
            keys are the rule's own.
        """
        return {"score": percent(scores)}

    def settings(self, judge: Judge | None = None) -> dict[str, Any]:
        """Return how the rule was applied, for results: its options and its judge."""
        return self.config.model_dump(mode="json")

    def matches(self, question: Question, text: str) -> bool:
        """Return whether a text is a reference (exact match), after the rule's own clean-up."""
        return self.score(question, AnswerRecord(text)) == 1

    def is_right(self, question: Question, record: AnswerRecord, score: float) -> bool:
        """Return whether an answer counts as right, for deciding if retrieval helped or hurt.

        Args:
            score: the rule's score of the answer.
        """
        return score == 1

    def same(self, first: str, second: str) -> bool:
        """Return whether two texts are equal under the rule, so that one score serves both."""
        return first == second

    def exact_match_at_n(
        self, question: Question, texts: Sequence[str], scores: Sequence[float]
    ) -> dict[int, float] | None:
        """Return whether one of the n best different texts is a reference; None if not defined.

        Args:
            texts: candidate answers.
            scores: of the candidates, higher is better.
        """
        return None

    def interval(
        self,
        scores: Sequence[float],
        splits: Sequence[str],
        clusters: Sequence[Hashable],
        *,
        seed: int,
    ) -> Interval:
        """Return the aggregated score of some questions with a 95 % bootstrap interval.

        Args:
            scores: one per question, in the unit of the result.
            splits: `Question.split` of each question, blank if it has none.
            clusters: what is resampled: the image of each question.
        """
        return bootstrap(scores, clusters, seed=seed)

    def paired_test(
        self,
        first: Mapping[Id, float],
        second: Mapping[Id, float],
        splits: Mapping[Id, str],
        clusters: Mapping[Id, Hashable],
        *,
        seed: int,
    ) -> PairedTest:
        """Compare two systems' scores on the same questions; see `interval`."""
        return paired_test(first, second, clusters, seed=seed)

    def submission(self, answers: Mapping[Id, str]) -> Submission:
        """Return predictions in the benchmark's format; by default VQA's.

        Args:
            answers: answers by question id; blank if a question was not answered.
        """
        rows = [{"question_id": q, "answer": answer} for q, answer in answers.items()]
        return Submission(".json", json.dumps(rows, ensure_ascii=False, indent=0))


def checked_scores(
    metric: AnswerMetric, scores: Sequence[float | Failure], questions: int
) -> list[float | Failure]:
    """Return what a metric gave for a number of questions.

    Raises:
        ContractError: not one score per question, or one that is not a number from 0 to 1.
    """
    check_count("metric", metric, "scores", scores, questions)
    for score in scores:
        if not isinstance(score, Failure) and not (
            isinstance(score, int | float) and 0 <= score <= 1
        ):
            raise broken(metric, "metric", f"a score from 0 to 1 is expected, got {score!r}")
    return [score if isinstance(score, Failure | float) else float(score) for score in scores]
