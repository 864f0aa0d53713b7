"""Several runs under several scoring rules: whether the order of two systems changes with the rule.

A run's score by a rule, minus that of the reference run, on the same questions; interval and test
are the rule's own, paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from ravqa.core.records import Question
from ravqa.core.terminal import Columns
from ravqa.core.texts import number_of
from ravqa.evaluation.answers import record_of
from ravqa.evaluation.rules import Scored, aggregate, choose_rules, scored, scored_before
from ravqa.evaluation.schema import RuleDifference, Sample
from ravqa.metrics.statistics.intervals import Estimate, estimate_of_difference
from ravqa.runs.finished import FinishedRun, Id, RunFiles, dataset_of

TITLE = "Score % by rule, compared with the reference"
HEADER = ("", "score %", "reference %", "difference", "95 % interval")
_DECIMALS = 4
_FEWER = (
    "Where a rule leaves out questions of one run that it keeps of the other, the difference is "
    "over those that it keeps of both."
)


@dataclass(frozen=True, slots=True)
class RuleComparison:
    """Two runs under one rule, in percent.

    Attributes:
        reference, run: their names.
        scores: of the reference, and of the run.
        difference: of the run minus the reference.
        p_value: two-sided, of the paired test.
        same_questions: whether both scores are over the questions of the difference.
    """

    rule: str
    reference: str
    run: str
    scores: tuple[float, float]
    difference: Estimate
    p_value: float
    same_questions: bool


def compared_by_rules(
    runs: Mapping[str, FinishedRun],
    reference: str,
    ids: Mapping[Id, None],
    asked: Sequence[str],
    *,
    seed: int,
) -> list[RuleComparison]:
    """Compare each run with the reference under each rule that scores both.

    Args:
        runs: by name.
        ids: the questions to compare on.
        asked: names of rules, as of `ravqa score --rules`.

    Raises:
        UserError: answers were not scored, or a rule that was named cannot score them.
    """
    first = RunFiles.read(runs[reference].folder)
    kept = (s for s in first.samples(runs[reference].condition) if s["question_id"] in ids)
    dataset = dataset_of(first.results, kept, first.folder)
    questions = dataset.questions
    samples: dict[str, list[Sample]] = {}
    for name, run in runs.items():
        read = RunFiles.read(run.folder).samples(run.condition)
        found = {s["question_id"]: s for s in read if s["question_id"] in ids}
        samples[name] = [found[q.question_id] for q in questions]
    answers = [sample.get("answer") for each in samples.values() for sample in each]
    chosen = choose_rules(dataset, asked, answers, judge=False)
    compared: list[RuleComparison] = []
    for metric in chosen.rules:
        by_run = {
            name: scored_before(metric, rows)
            if metric.name == dataset.metric
            else scored(metric, questions, [record_of(sample) for sample in rows])
            for name, rows in samples.items()
        }
        compared += [
            row
            for name in runs
            if name != reference
            and (row := _row(questions, (reference, by_run[reference]), (name, by_run[name]), seed))
        ]
    return compared


def _row(
    questions: Sequence[Question],
    first: tuple[str, Scored],
    other: tuple[str, Scored],
    seed: int,
) -> RuleComparison | None:
    """Return None where a run has no score by the rule."""
    (reference, theirs), (run, mine) = first, other
    metric = mine.metric
    scores = aggregate(theirs, questions), aggregate(mine, questions)
    in_both = [a and b for a, b in zip(theirs.kept, mine.kept, strict=True)]
    if scores[0] is None or scores[1] is None or not any(in_both):
        return None
    both = list(compress(questions, in_both))
    ids = [q.question_id for q in both]
    ours, others = (
        dict(zip(ids, (100 * v for v in compress(each.values, in_both)), strict=True))
        for each in (mine, theirs)
    )
    images = {q.question_id: q.image_id for q in both}
    splits = {q.question_id: q.split or "" for q in both}
    test = metric.paired_test(ours, others, splits, images, seed=seed)
    difference = estimate_of_difference(test, ours, others, images)
    return RuleComparison(
        metric.name,
        reference,
        run,
        (scores[0], scores[1]),
        difference,
        test.p_value,
        same_questions=list(theirs.kept) == list(mine.kept),
    )


def verdicts(found: Sequence[RuleComparison]) -> list[str]:
    """Return, for each run, whether its order with the reference changes with the rule."""
    lines = []
    for run in dict.fromkeys(row.run for row in found):
        rows = [row for row in found if row.run == run]
        reference = rows[0].reference
        ahead = [sum(r.scores[i] > r.scores[1 - i] for r in rows) for i in (0, 1)]
        equal = len(rows) - sum(ahead)
        counts = f"{reference} scores higher under {ahead[0]} of {number_of(len(rows), 'rule')}, "
        counts += f"{run} under {ahead[1]}"
        counts += f"; they are equal under {equal}" if equal else ""
        changes = "changes with the rule" if all(ahead) else "does not change with the rule"
        lines.append(f"The order of {reference} and {run} {changes}: {counts}.")
    if any(not row.same_questions for row in found):
        lines.append(_FEWER)
    return lines


def rows_of(found: Sequence[RuleComparison]) -> list[list[str]]:
    """Return the rows below `HEADER`; a run is named where there are several."""
    several = len({row.run for row in found}) > 1
    return [
        [
            f"{row.run}, {row.rule}" if several else row.rule,
            f"{row.scores[1]:.1f}",
            f"{row.scores[0]:.1f}",
            f"{row.difference.value:+.1f}",
            row.difference.range(),
        ]
        for row in found
    ]


def printed(found: Sequence[RuleComparison]) -> Columns:
    """Return the comparison for a terminal."""
    table = Columns(TITLE, verdicts(found))
    table.names()
    for name in HEADER[1:-1]:  # the interval stands beside the difference: names are long
        table.numbers(name, width=9)
    for name, mine, theirs, difference, interval in rows_of(found):
        table.row(name, mine, theirs, difference if interval == "-" else f"{difference} {interval}")
    return table


def as_json(found: Sequence[RuleComparison]) -> list[RuleDifference]:
    """Return plain values for JSON."""
    return [
        {
            "rule": row.rule,
            "reference": row.reference,
            "run": row.run,
            "score_of_reference": round(row.scores[0], _DECIMALS),
            "score": round(row.scores[1], _DECIMALS),
            "difference": round(row.difference.value, _DECIMALS),
            "interval_95": row.difference.bounds(_DECIMALS),
            "p_value": round(row.p_value, 5),
        }
        for row in found
    ]
