"""The conformance suites of answer metrics and of judges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.metrics.base import AnswerMetric, AnswerRecord
from ravqa.metrics.judges.base import Judge, NotAttempted
from ravqa.testing.asserting import (
    conformance,
    require,
    require_json,
    require_names,
    require_thread_safe,
)

_ANSWERS = ("leaves", "Leaves.", "no idea", "", "eucalyptus leaves and twigs", "ünïcode 日本", "42")


@conformance(AnswerMetric)
def check_metric(
    metric: AnswerMetric,
    questions: Sequence[Question] | None = None,
    judge: Judge | None = None,
) -> None:
    """Check an answer metric: it scores several answers to a few questions.

    Args:
        metric: the metric, with its options.
        questions: questions that it can score; None for two with ten references each.
        judge: for a metric that asks one.

    Raises:
        AssertionError: the metric breaks the contract of `ravqa.metrics.base.AnswerMetric`.
    """
    name = type(metric).__name__
    require_names(metric, "name", "label", "rule", "right")
    if questions is None:
        ten = ("leaves",) * 6 + ("eucalyptus",) * 3 + ("plants",)
        questions = [
            Question(1, "What does this animal eat?", answers=ten, image_id=1),
            Question(2, "What grows here?", answers=("eucalyptus leaves",) * 10, image_id=2),
        ]
    for question in questions:
        problem = metric.problem(question)
        require(problem == "", f"{name} can score {question.question!r}, got {problem!r}")

    require(
        metric.problem(replace(questions[0], answers=(), answer_eval=(), correct_choice=None)),
        f"{name}.problem says why a question without answers cannot be scored",
    )
    for question in questions:
        _check_scores(metric, question, judge)
    calls = [
        partial(metric.score, question, AnswerRecord(text, raw=text), judge)
        for question in questions
        for text in (*_ANSWERS, _reference(question))
    ]
    if judge is None or judge.thread_safe:
        require_thread_safe(metric, "score", calls, lambda one, other: one == other)
    asked = list(questions)
    records = [AnswerRecord(_reference(question)) for question in asked]
    records[-1] = AnswerRecord(None)
    found = metric.scores(asked, records, judge)
    scores = [score for score in found if not isinstance(score, Failure)]
    require(
        len(scores) == len(asked) and scores[-1] == 0,
        f"{name}.scores gives one score per question, 0 where there is no answer, got {scores}",
    )
    summary = metric.summary(asked, scores)
    value = summary.get("score", math.nan)
    require(
        value is None or 0 <= value <= 100,
        f"{name}.summary has the `score` in percent, or None, got {summary}",
    )
    require_json(summary, f"what {name}.summary returns")
    require_json(metric.settings(judge), f"what {name}.settings returns")
    splits, clusters = [q.split or "" for q in asked], [q.image_id for q in asked]
    metric.interval(scores, splits, clusters, seed=0)
    written = metric.submission({question.question_id: "leaves" for question in asked})
    require(written.suffix.startswith("."), f"{name}.submission has a suffix such as .json")


def _reference(question: Question) -> str:
    if not question.answers:
        return question.right_choice or ""
    return str(question.answers[0]).replace("&&", ", ")


def _check_scores(metric: AnswerMetric, question: Question, judge: Judge | None) -> None:
    name = type(metric).__name__
    for text in (*_ANSWERS, _reference(question)):
        record = AnswerRecord(text, raw=text)
        score = metric.score(question, record, judge)
        require(
            isinstance(score, int | float) and 0 <= score <= 1,
            f"{name}.score is a number from 0 to 1, got {score!r} for {text!r}",
        )
        require(
            metric.score(question, record, judge) == score,
            f"{name}.score gives the same answer the same score",
        )
        right = metric.is_right(question, record, score)
        require(isinstance(right, bool), f"{name}.is_right is True or False, got {right!r}")
        matches = metric.matches(question, text)
        require(isinstance(matches, bool), f"{name}.matches is True or False, got {matches!r}")
        require(metric.same(text, text), f"{name}.same is true of a text and itself")
    best = metric.score(question, AnswerRecord(_reference(question)), judge)
    require(best > 0, f"{name}.score gives a reference more than nothing, got {best}")


@conformance(Judge)
def check_judge(judge: Judge) -> None:
    """Check a judge: it judges four pairs of answers.

    Args:
        judge: the judge, built.

    Raises:
        AssertionError: the judge breaks the contract of `ravqa.metrics.judges.base.Judge`.
    """
    name = type(judge).__name__
    require_names(judge, "name", "fingerprint")
    triples = [
        ("What does it eat?", "leaves", "leaves"),
        ("What does it eat?", "leaves", "fish"),
        ("How tall is it?", "12 metres", "twelve metres"),
        ("Where is it?", "in the Alps", ""),
    ]
    found = judge.judge(*zip(*triples, strict=True))
    require(len(found) == 4, f"{name}.judge returns one number per triple, got {len(found)} of 4")
    for value in found:
        require(
            isinstance(value, float) and (math.isnan(value) or 0 <= value <= 1),
            f"{name}.judge returns probabilities, 0 to 1 or nan, got {value!r}",
        )
        require(
            judge.labels == 3 or not isinstance(value, NotAttempted),
            f"{name} sets `labels` to 3, if it returns NotAttempted",
        )
    alone = [judge.judge([q], [r], [c])[0] for q, r, c in triples]
    require(_alike(found, alone), f"{name}.judge judges a triple alike whatever is judged with it")
    calls = [partial(judge.judge, [q], [r], [c]) for q, r, c in triples]
    calls.append(partial(judge.judge, *zip(*triples, strict=True)))
    require_thread_safe(judge, "judge", calls, _alike)
    each = dict(judge.judge_each(*zip(*triples, strict=True)))
    require(
        sorted(each) == [0, 1, 2, 3] and _alike(found, [each[i] for i in range(4)]),
        f"{name}.judge_each gives each place once, with the judgement of `judge`",
    )
    require(list(judge.judge([], [], [])) == [], f"{name}.judge returns [] for no triples")


def _alike(some: Sequence[float | Failure], others: Sequence[float | Failure]) -> bool:
    return all(
        isinstance(a, float)
        and isinstance(b, float)
        and ((math.isnan(a) and math.isnan(b)) or abs(a - b) < 1e-4)
        for a, b in zip(some, others, strict=True)
    )
