"""The same answers under several scoring rules: what each gives, and where they disagree.

Each rule aggregates as its own code does, so that a number here is the number that the rule's
source would print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, cast

from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure, first_failure
from ravqa.core.records import Question
from ravqa.datasets.base import Dataset
from ravqa.evaluation.answers import known_scores, points, record_of, scores_by
from ravqa.evaluation.schema import (
    Agreement,
    Bounds,
    Predicted,
    RuleExample,
    RuleScore,
    RulesSection,
    Sample,
)
from ravqa.evaluation.sections import DECIMALS, Samples
from ravqa.metrics import METRICS
from ravqa.metrics.base import AnswerMetric, AnswerRecord, Form
from ravqa.metrics.evqa import QUESTION_TYPES
from ravqa.metrics.judges.base import Judge, NotAttempted
from ravqa.metrics.statistics import intervals

ALL = "all"
"""The rules that fit a dataset's questions."""

EXAMPLES = 5
"""Default number of examples on which rules disagree."""

_ANNOTATORS = 10  # answers of a question of VQA
_RIGHT = 0.5  # scores from which an answer counts as right here, whatever the rule's own scale
_FORMS: Mapping[Form, str] = {
    "infoseek": "InfoSeek's, with 'answer_eval'",
    "vqa": "VQA's, with ten answers",
    "evqa": "E-VQA's, with a question type",
    "texts": "of one's own, with accepted answers",
}


def check_rules(asked: Sequence[str], where: str = "--rules") -> None:
    """Refuse names that no rule has.

    Raises:
        UserError: one is neither "all" nor a registered metric; similar names are listed.
    """
    for name in asked:
        if name != ALL:
            METRICS.check(name, where)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rules that can score a dataset's questions.

    Attributes:
        rules: the dataset's own rule first.
        left_out: why others are not asked, by name.
    """

    rules: Sequence[AnswerMetric]
    left_out: Mapping[str, str]


def choose_rules(
    dataset: Dataset,
    asked: Sequence[str],
    answers: Sequence[str | None],
    *,
    judge: bool,
    where: str = "--rules",
) -> Chosen:
    """Choose the rules that were asked for, and the dataset's own.

    Args:
        asked: names of metrics; "all" for those that fit the questions.
        answers: the answers to score.
        judge: whether there is a judge to ask.

    Raises:
        UserError: a rule that was named cannot score the questions, or needs a judge.
    """
    own = dataset.answer_metric
    form = form_of(own, dataset.questions)
    rules, left_out = {own.name: own}, {}
    for name in _names(asked, form):
        if name in rules:
            continue
        metric: AnswerMetric = METRICS.get(name)()
        reason = ""
        if metric.forms and form not in metric.forms:
            fit = " or ".join(_FORMS[f] for f in _FORMS if f in metric.forms)
            reason = f"it is for questions that are {fit}; these are {_FORMS[form]}"
        elif metric.needs_judge and not judge:
            reason = "it asks a judge (--judge)"
        elif (
            name not in asked
            and metric.wants
            and not any(metric.wants in (a or "") for a in answers)
        ):
            reason = f"no answer has {metric.wants}, without which it gives 0"
        if not reason:
            rules[name] = metric
        elif name in asked:
            raise UserError(f"{where} {name}: {reason}")
        else:
            left_out[name] = reason
    return Chosen(list(rules.values()), left_out)


def _names(asked: Sequence[str], form: Form) -> list[str]:
    """Return the rules that were named, then with "all" those that say that they fit."""
    named = [name for name in asked if name != ALL]
    if ALL not in asked:
        return named
    return named + [name for name, _ in METRICS if form in METRICS.get(name).forms]


def form_of(metric: AnswerMetric, questions: Sequence[Question]) -> Form:
    """Return the form of a dataset's questions: its metric's, else what the questions have."""
    if len(metric.forms) == 1:
        return next(iter(metric.forms))
    first = questions[0] if questions else None
    if first is not None and first.answer_eval:
        return "infoseek"
    if first is not None and first.question_type in QUESTION_TYPES:
        return "evqa"
    return "vqa" if first is not None and len(first.answers) == _ANNOTATORS else "texts"


@dataclass(frozen=True, slots=True)
class Scored:
    """What a rule gives for the answers to some questions.

    Attributes:
        outcomes: of each question; a failure where the rule gives no score.
        kept: whether each question is in the rule's aggregate.
    """

    metric: AnswerMetric
    outcomes: Sequence[float | Failure]
    kept: Sequence[bool]

    @property
    def values(self) -> list[float]:
        """The scores, 0 to 1; 0 where there is none."""
        return [points(outcome) for outcome in self.outcomes]


def scored(
    metric: AnswerMetric,
    questions: Sequence[Question],
    records: Sequence[AnswerRecord],
    judge: Judge | None = None,
) -> Scored:
    """Score answers by a rule; a question that it cannot use has a failure.

    Raises:
        ServerError: the judge is gone.
    """
    problems = [metric.problem(question) for question in questions]
    usable = [not problem for problem in problems]
    asked = list(compress(questions, usable))
    known = list(compress(records, usable))
    made = iter(scores_by(metric, asked, known, judge, f"the rule {metric.name}"))
    outcomes = [Failure(problem) if problem else next(made) for problem in problems]
    worst = first_failure(outcomes)
    if worst and worst.fatal:
        raise worst.error
    return Scored(metric, outcomes, metric.counted(records, outcomes))


def scored_before(metric: AnswerMetric, samples: Sequence[Predicted]) -> Scored:
    """Return what a run's samples have of its own rule, with the verdicts of its judge, if any."""
    outcomes, _ = known_scores(cast("list[Sample]", samples))
    return Scored(metric, outcomes, metric.counted([record_of(s) for s in samples], outcomes))


def rules_section(
    dataset: Dataset,
    samples: Samples,
    asked: Sequence[str] = (ALL,),
    *,
    seed: int,
    judge: Judge | None = None,
    examples: int = EXAMPLES,
    known: bool = False,
) -> RulesSection:
    """Return what each rule gives for the same answers, highest score first.

    Args:
        samples: the answers to the dataset's questions.
        asked: names of metrics, see `choose_rules`.
        examples: questions to list on which rules disagree, most disagreement first.
        known: the samples have scores by the dataset's own rule, which stand.

    Raises:
        UserError: as `choose_rules`.
        ServerError: the judge is gone.
    """
    questions = [q for q in dataset.questions if q.question_id in samples]
    records = [record_of(samples[q.question_id]) for q in questions]
    answers = [record.answer for record in records]
    chosen = choose_rules(dataset, asked, answers, judge=judge is not None)
    left_out = dict(chosen.left_out)
    own = chosen.rules[0].name
    found: list[Scored] = []
    rows: list[RuleScore] = []
    made: dict[Any, Bounds] = {}
    for metric in chosen.rules:
        if known and metric.name == own:
            each = scored_before(metric, [samples[q.question_id] for q in questions])
        else:
            each = scored(metric, questions, records, judge)
        row = _row(each, questions, seed, made)
        if row is None:
            reason = first_failure(each.outcomes)
            left_out[metric.name] = (
                f"no question is in its mean ({reason.reason if reason else ''})"
            )
        else:
            rows.append(row)
            found.append(each)
    for each, row in zip(found, rows, strict=True):
        if each.metric.uses_judge and found[0].metric.name == own != each.metric.name:
            row["agreement"] = _agreement(each, found[0], questions, seed)
    shown, disputed = _examples(questions, answers, found, own, examples)
    return {
        "own": own,
        "questions": len(questions),
        "rules": sorted(rows, key=lambda row: -row["score"]),
        "left_out": left_out,
        "disputed": disputed,
        "examples": shown,
    }


def aggregate(found: Scored, questions: Sequence[Question]) -> float | None:
    """Return the score in percent as the rule aggregates it; None without a score to aggregate.

    Where its score needs parts of the dataset that are absent, it is the mean.
    """
    kept = list(compress(questions, found.kept))
    if not kept or all(isinstance(outcome, Failure) for outcome in found.outcomes):
        return None
    summary = found.metric.summary(kept, list(compress(found.values, found.kept)))
    score: float = summary["mean"] if summary["score"] is None else summary["score"]
    return score


def _row(
    found: Scored, questions: Sequence[Question], seed: int, known: dict[Any, Bounds]
) -> RuleScore | None:
    """Return None without a score; `known` are the intervals of rules that gave the same scores."""
    metric = found.metric
    kept = list(compress(questions, found.kept))
    failures = [o for o in found.outcomes if isinstance(o, Failure)]
    score = aggregate(found, questions)
    if score is None:
        return None
    values = [100 * v for v in compress(found.values, found.kept)]
    key = type(metric).interval, tuple(values), tuple(found.kept)
    if key not in known:
        splits, images = [q.split or "" for q in kept], [q.image_id for q in kept]
        interval = metric.interval(values, splits, images, seed=seed)
        known[key] = intervals.estimate(interval, images).bounds(DECIMALS)
    row: RuleScore = {
        "rule": metric.name,
        "label": metric.label,
        "score": score,
        "interval_95": known[key],
        "questions": len(kept),
        "without_score": len(failures),
    }
    if failures:
        row["reason"] = failures[0].reason
    if silent := sum(isinstance(outcome, NotAttempted) for outcome in found.outcomes):
        row["not_attempted"] = silent
    return row


def _agreement(found: Scored, own: Scored, questions: Sequence[Question], seed: int) -> Agreement:
    """Return how often a rule says the same as the own one, where it has a score."""
    kept = [not isinstance(outcome, Failure) for outcome in found.outcomes]
    pairs = compress(zip(found.values, own.values, strict=True), kept)
    agrees = [100.0 * ((a >= _RIGHT) == (b >= _RIGHT)) for a, b in pairs]
    images = [q.image_id for q in compress(questions, kept)]
    interval = intervals.bootstrap(agrees, images, seed=seed)
    return {
        "share": round(interval.mean, DECIMALS),
        "questions": len(agrees),
        "interval_95": intervals.estimate(interval, images).bounds(DECIMALS),
    }


def _examples(
    questions: Sequence[Question],
    answers: Sequence[str | None],
    found: Sequence[Scored],
    own: str,
    limit: int,
) -> tuple[list[RuleExample], int]:
    """Return questions on which rules disagree with the own one, and how many there are."""
    verdicts = {each.metric.name: [v >= _RIGHT for v in each.values] for each in found}
    reference = verdicts[own] if own in verdicts else next(iter(verdicts.values()), [])
    against = [
        sum(verdict[i] != reference[i] for verdict in verdicts.values())
        for i in range(len(questions))
    ]
    disputed = [i for i, rules in enumerate(against) if rules]
    shown: list[RuleExample] = [
        {
            "question_id": questions[i].question_id,
            "question": questions[i].question,
            "answer": answers[i],
            "references": list(questions[i].answers),
            "disagree": against[i],
            "right": [name for name, verdict in verdicts.items() if verdict[i]],
            "wrong": [name for name, verdict in verdicts.items() if not verdict[i]],
        }
        for i in sorted(disputed, key=lambda i: -against[i])[:limit]
    ]
    return shown, len(disputed)


def spread(section: RulesSection) -> str:
    """Return how far the rules are apart, in one line; blank for a single rule."""
    rows = section["rules"]
    if len(rows) < 2:
        return ""
    high, low = rows[0], rows[-1]
    if f"{high['score']:.1f}" == f"{low['score']:.1f}":
        return f"this answer set scores {low['score']:.1f} by all {len(rows)} rules"
    line = (
        f"this answer set scores {low['score']:.1f} ({low['rule']}) to {high['score']:.1f} "
        f"({high['rule']}), depending on the rule"
    )
    own = next((row for row in rows if row["rule"] == section["own"]), None)
    return line if own is None else f"{line}; {own['score']:.1f} by its own ({own['rule']})"
