"""Answer quality: each answer's score, and the section of results.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from ravqa.core.contracts import raised_by
from ravqa.core.errors import DataError
from ravqa.core.outcomes import Failure, first_failure
from ravqa.core.records import Question
from ravqa.core.texts import is_wordless, number_of
from ravqa.datasets.base import Dataset
from ravqa.evaluation.schema import (
    AnswerSection,
    AtK,
    Cut,
    Group,
    HitTables,
    Means,
    Neutralised,
    PictureCounts,
    Predicted,
    Sample,
)
from ravqa.evaluation.sections import (
    DECIMALS,
    Id,
    Samples,
    by_type,
    images_of,
    interval_of,
    tested,
)
from ravqa.metrics import diagnostics
from ravqa.metrics.base import AnswerMetric, AnswerRecord, checked_scores, percent
from ravqa.metrics.judges.base import Judge, NotAttempted


def score_answers(
    dataset: Dataset,
    questions: Sequence[Question],
    records: Sequence[AnswerRecord],
    *,
    judge: Judge | None = None,
) -> list[float | Failure]:
    """Return the dataset's official score of each answer, 0 to 1; no answer (None) scores 0.

    A score that depends on a verdict that the judge did not give is a failure.

    Args:
        judge: judge for rules that use one; None means exact match only.

    Raises:
        DataError: a question's references cannot be used for scoring.
    """
    return scores_by(dataset.answer_metric, questions, records, judge, dataset.label)


def scores_by(
    metric: AnswerMetric,
    questions: Sequence[Question],
    records: Sequence[AnswerRecord],
    judge: Judge | None,
    where: str,
) -> list[float | Failure]:
    """Return a rule's score of each answer; see `score_answers`.

    Args:
        where: what an error in the references is about.
    """
    try:
        with raised_by("metric", metric, "from scores", but=ValueError):
            scores = metric.scores(questions, records, judge)
    except ValueError as e:
        raise DataError(f"{where}: {e}") from None
    return checked_scores(metric, scores, len(questions))


def score_raw(
    dataset: Dataset,
    questions: Sequence[Question],
    records: Sequence[AnswerRecord],
    scores: Sequence[float | Failure],
    *,
    judge: Judge | None = None,
) -> list[float | Failure]:
    """Return the official score of each raw generation, as if no answer were extracted.

    Args:
        scores: scores of the answers. A text equal under the rule is not scored again.
    """
    metric = dataset.answer_metric
    new = [
        r.raw is not None and (r.answer is None or not metric.same(r.raw, r.answer))
        for r in records
    ]
    made = iter(
        score_answers(
            dataset,
            [q for q, is_new in zip(questions, new, strict=True) if is_new],
            [replace(r, answer=r.raw) for r, is_new in zip(records, new, strict=True) if is_new],
            judge=judge,
        )
    )
    return [next(made) if is_new else score for score, is_new in zip(scores, new, strict=True)]


def answer_section(
    dataset: Dataset,
    conditions: Mapping[str, Samples],
    *,
    seed: int,
    judge: Judge | None = None,
    scored: bool = False,
) -> AnswerSection:
    """Return answer quality of the run and of each control, with comparisons to the run.

    Percent; intervals and tests resample images. Each condition's "groups" are by question type;
    "raw" are the scores of the generations from which the answers were extracted, "cut" counts the
    passages that were to be read and did not fit into the reader's context. Samples with the answer
    None are counted as wrong; "unanswered" lists those that the reader could not answer, "unjudged"
    those that got no verdict from the judge, which counts as wrong.

    Args:
        judge: asked by rules that use one, and named in the section.
        scored: the samples have scores, which stand; nothing is scored again.

    Raises:
        ServerError: the judge is gone.
    """
    questions = [
        q for q in dataset.questions if all(q.question_id in s for s in conditions.values())
    ]
    images = images_of(questions)
    metric = dataset.answer_metric
    section: AnswerSection = {
        "metric": metric.name,
        "label": metric.label,
        "right": metric.right,
        "rule": metric.settings(judge),
        "questions": len(questions),
        "conditions": {},
        "comparisons": {},
    }
    scores: dict[str, dict[Id, float]] = {}
    exact: dict[str, dict[Id, bool]] = {}
    for name, samples in conditions.items():
        records = [record_of(samples[q.question_id]) for q in questions]
        if scored:
            outcomes, raws = known_scores(
                cast("list[Sample]", [samples[q.question_id] for q in questions])
            )
        else:
            outcomes = score_answers(dataset, questions, records, judge=judge)
            raws = score_raw(dataset, questions, records, outcomes, judge=judge)
            worst = first_failure([*outcomes, *raws])
            if worst and worst.fatal:
                raise worst.error
        values = [points(outcome) for outcome in outcomes]
        has_raw = any(record.raw is not None for record in records)
        scores[name] = {q.question_id: 100 * v for q, v in zip(questions, values, strict=True)}
        exact[name] = {
            q.question_id: is_exact(metric, q, record)
            for q, record in zip(questions, records, strict=True)
        }
        section["conditions"][name] = {
            **_means(dataset, questions, outcomes, seed),
            "raw": _means(dataset, questions, raws, seed) if has_raw else None,
            "cut": _cut([samples[q.question_id] for q in questions]),
            "neutralised": _neutralised([samples[q.question_id] for q in questions]),
            "pictures": _pictures({q.question_id: samples[q.question_id] for q in questions}),
            "unanswered": [
                {"question_id": q.question_id, "reason": reason}
                for q in questions
                if (reason := samples[q.question_id].get("error"))
            ],
            "empty": sum(r.answer is not None and is_wordless(r.answer) for r in records),
            "no_choice": sum(
                bool(q.choices) and r.answer is not None and r.answer not in q.choices
                for q, r in zip(questions, records, strict=True)
            ),
            "exact_match": _exact_match(metric, questions, samples, exact[name]),
            "hits": _hit_tables(metric, questions, samples),
            "groups": _groups(dataset, questions, scores[name], seed),
        }
    main, *controls = conditions
    for name in controls:
        compared = tested(scores[main], scores[name], images, seed)
        section["comparisons"][f"{main} - {name}"] = compared
    if "none" in controls:
        comparison = section["comparisons"][f"{main} - none"]
        both = exact[main], exact["none"]
        comparison["hit_success_ratio"] = percent([diagnostics.hit_success_ratio(*both)])
        comparison["free_success_ratio"] = percent([diagnostics.free_success_ratio(*both)])
    return section


def record_of(sample: Predicted) -> AnswerRecord:
    """Return what a rule may read of a sample."""
    return AnswerRecord(sample["answer"], sample.get("raw"), sample)


def points(score: float | Failure) -> float:
    """Return what a score counts, 0 to 1; a failed one counts 0."""
    return 0.0 if isinstance(score, Failure) else score


def known_scores(
    samples: Sequence[Sample],
) -> tuple[list[float | Failure], list[float | Failure]]:
    """Return the scores of answers and of raw generations that samples already have."""
    answers: list[float | Failure] = []
    raws: list[float | Failure] = []
    for s in samples:
        score = NotAttempted() if s.get("not_attempted") else s["score"]
        answers.append(Failure(s["unjudged"]) if "unjudged" in s else score)
        raws.append(Failure(s["raw_unjudged"]) if "raw_unjudged" in s else s["raw_score"])
    return answers, raws


def is_exact(metric: AnswerMetric, question: Question, record: AnswerRecord) -> bool:
    """Return whether an answer is a reference after the rule's own clean-up (exact match, EM)."""
    return record.answer is not None and metric.matches(question, record.answer)


def _means(
    dataset: Dataset, questions: Sequence[Question], outcomes: Sequence[float | Failure], seed: int
) -> Means:
    """Return the metric's own summary, the interval, and the answers that were not judged."""
    values = [points(outcome) for outcome in outcomes]
    scores = {q.question_id: 100 * v for q, v in zip(questions, values, strict=True)}
    interval = interval_of(scores, images_of(questions), seed)
    summary = dataset.answer_metric.summary(questions, values)
    unjudged = [
        {"question_id": q.question_id, "reason": outcome.reason}
        for q, outcome in zip(questions, outcomes, strict=True)
        if isinstance(outcome, Failure)
    ]
    return cast(Means, {**summary, "interval_95": interval, "unjudged": unjudged})


def _cut(samples: Sequence[Predicted]) -> Cut:
    cuts = [sample.get("cut", 0) for sample in samples]
    return {"passages": sum(cuts), "questions": len(cuts) - cuts.count(0)}


def _neutralised(samples: Sequence[Predicted]) -> Neutralised:
    counts = [sample.get("neutralised", 0) for sample in samples]
    return {"tokens": sum(counts), "questions": len(counts) - counts.count(0)}


def _pictures(samples: Samples) -> PictureCounts | None:
    found = {name: s["pictures"] for name, s in samples.items() if "pictures" in s}
    if not found:
        return None
    return {
        "shown": sum(own["shown"] for own in found.values()),
        "questions": sum(own["shown"] > 0 for own in found.values()),
        "cut": sum(own["cut"] for own in found.values()),
        "unread": [
            {"question_id": name, "reasons": own["unread"]}
            for name, own in found.items()
            if own["unread"]
        ],
    }


def picture_notes(counts: PictureCounts) -> Iterator[str]:
    """Yield what was not shown of the passages' pictures."""
    if not counts["shown"]:
        yield "no picture of a passage was shown, although answering.passage_images asks for them"
    if counts["cut"]:
        yield (
            f"{number_of(counts['cut'], 'picture')} of passages did not fit into prompts, and got "
            "left out"
        )
    if counts["unread"]:
        reasons = sum(len(own["reasons"]) for own in counts["unread"])
        yield (
            f"{number_of(reasons, 'picture')} of passages cannot be read, and got left out (listed "
            "in results.json)"
        )


def _exact_match(
    metric: AnswerMetric,
    questions: Sequence[Question],
    samples: Samples,
    exact: Mapping[Id, bool],
) -> AtK:
    """Return EM@n of the drafts if the rule defines it and all have scores, else answers' EM."""
    found = []
    for q in questions:
        drafts = samples[q.question_id].get("drafts", [])
        scores = [draft["score"] for draft in drafts if draft["score"] is not None]
        if not drafts or len(scores) < len(drafts):
            break
        value = metric.exact_match_at_n(q, [draft["text"] for draft in drafts], scores)
        if value is None:
            break
        found.append(value)
    if len(found) < len(questions):
        return {"1": percent([float(value) for value in exact.values()])}
    return {str(n): percent([value[n] for value in found]) for n in found[0]}


def _hit_tables(
    metric: AnswerMetric, questions: Sequence[Question], samples: Samples
) -> HitTables | None:
    """Return RA-VQA's hit tables: over drafts that read one passage each, and the chosen ones."""
    every: list[tuple[bool, bool]] = []
    chosen: list[tuple[bool, bool]] = []
    for q in questions:
        sample = samples[q.question_id]
        drafts = sample.get("drafts", [])
        pairs = [
            (metric.matches(q, d["text"]), d["in_passages"])
            for d in drafts
            if len(d["passage_ids"]) == 1
        ]
        if not pairs or len(pairs) < len(drafts) or sample.get("joint"):
            continue  # no answer belongs to a single passage
        every += pairs
        scores = [-math.inf if d["score"] is None else d["score"] for d in drafts]
        chosen.append(pairs[scores.index(max(scores))])
    if not every:
        return None
    return {"documents": _shares(every), "selected": _shares(chosen)}


def _shares(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    return {cell: percent([share]) for cell, share in diagnostics.hit_table(pairs).items()}


def _groups(
    dataset: Dataset, questions: Sequence[Question], scores: Mapping[Id, float], seed: int
) -> dict[str, Group]:
    groups = by_type(dataset, questions, scores)
    images = images_of(questions)
    return {
        name: {
            "mean": round(sum(values.values()) / len(values), DECIMALS),
            "questions": len(values),
            "interval_95": interval_of(values, images, seed),
        }
        for name, values in groups.items()
    }
