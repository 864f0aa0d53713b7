"""From samples to scores: the two sections of results.json.

Scores are made from the samples alone, so that a run can be scored again without a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ravqa.datasets.base import Dataset
from ravqa.metrics import infoseek, intervals, prrecall, vqa_accuracy
from ravqa.records import Question

Samples = Mapping[int | str, Mapping[str, Any]]


def score_answer(dataset: Dataset, question: Question, answer: str) -> float:
    """The dataset's official score of one answer, 0 to 1."""
    if dataset.metric == "vqa_accuracy":
        return vqa_accuracy.score(answer, question.answers)
    return float(infoseek.score(answer, question.answer_eval, question.question_type or "String"))


def answer_section(
    dataset: Dataset, conditions: Mapping[str, Samples], *, seed: int
) -> dict[str, Any]:
    """Answer quality of the run and of each control, with comparisons to the run.

    Percent; intervals and tests resample images. Each condition's "groups" are by question type.
    """
    questions = [
        q for q in dataset.questions if all(q.question_id in s for s in conditions.values())
    ]
    images = {q.question_id: q.image_id for q in questions}
    section: dict[str, Any] = {
        "metric": dataset.metric,
        "questions": len(questions),
        "conditions": {},
        "comparisons": {},
    }
    scores: dict[str, dict[int | str, float]] = {}
    for name, samples in conditions.items():
        scores[name] = {
            q.question_id: 100 * score_answer(dataset, q, samples[q.question_id]["answer"])
            for q in questions
        }
        section["conditions"][name] = {
            **_official(dataset, questions, samples),
            "interval_95": _interval(scores[name], images, seed),
            "groups": _groups(dataset, questions, scores[name], seed),
        }
    main, *controls = conditions
    for name in controls:
        test = intervals.paired_test(scores[main], scores[name], images, seed=seed)
        section["comparisons"][f"{main} - {name}"] = {
            "difference": round(test.difference.mean, 2),
            "interval_95": [round(test.difference.low, 2), round(test.difference.high, 2)],
            "p_value": round(test.p_value, 5),
            "wins": test.wins,
            "losses": test.losses,
            "ties": test.ties,
        }
    return section


def _official(dataset: Dataset, questions: Sequence[Question], samples: Samples) -> dict[str, Any]:
    predictions = {q.question_id: samples[q.question_id]["answer"] for q in questions}
    if dataset.metric == "vqa_accuracy":
        overall, _ = vqa_accuracy.score_dataset(
            predictions, {q.question_id: q.answers for q in questions}
        )
        return {"score": overall}
    result = infoseek.score_dataset(
        {str(k): v for k, v in predictions.items()},
        {
            str(q.question_id): {
                "answer_eval": q.answer_eval,
                "question_type": q.question_type,
                "data_split": q.split or "",
            }
            for q in questions
        },
    )
    mean = 100 * sum(result.per_question.values()) / len(result.per_question)
    return {"score": result.final, "splits": result.splits, "mean": round(mean, 2)}


def _groups(
    dataset: Dataset, questions: Sequence[Question], scores: Mapping[int | str, float], seed: int
) -> dict[str, Any]:
    groups: dict[str, dict[int | str, float]] = {}
    for q in questions:
        if q.question_type is not None:
            name = dataset.question_types.get(q.question_type, q.question_type)
            groups.setdefault(name, {})[q.question_id] = scores[q.question_id]
    images = {q.question_id: q.image_id for q in questions}
    return {
        name: {
            "mean": round(sum(values.values()) / len(values), 2),
            "questions": len(values),
            "interval_95": _interval(values, images, seed),
        }
        for name, values in sorted(groups.items())
    }


def _interval(
    scores: Mapping[int | str, float], images: Mapping[int | str, Any], seed: int
) -> list[float]:
    interval = intervals.bootstrap(list(scores.values()), [images[q] for q in scores], seed=seed)
    return [round(interval.low, 2), round(interval.high, 2)]


def retrieval_section(
    dataset: Dataset, conditions: Mapping[str, Samples], ks: Sequence[int], *, seed: int
) -> dict[str, Any]:
    """PRRecall@K of every condition that retrieved, in percent, with intervals over images.

    A question is scored if it has answer strings; the searched text is title and passage.
    """
    questions = [
        q
        for q in dataset.questions
        if q.answers and all(q.question_id in s for s in conditions.values())
    ]
    section: dict[str, Any] = {
        "metric": "PRRecall",
        "searched_text": "title: text",
        "answers": f"annotators' {dataset.info.get('answer_field', 'answer')} strings, "
        "stripped and lower-cased",
        "questions": len(questions),
        "conditions": {},
    }
    if not questions:
        return section
    images = {q.question_id: q.image_id for q in questions}
    for name, samples in conditions.items():
        if not any(samples[q.question_id]["hits"] for q in questions):
            continue
        first = {q.question_id: samples[q.question_id]["first_hit"] for q in questions}
        recall = prrecall.score_dataset(first, ks)
        groups: dict[str, dict[int | str, int | None]] = {}
        for q in questions:
            if q.question_type is not None:
                group = dataset.question_types.get(q.question_type, q.question_type)
                groups.setdefault(group, {})[q.question_id] = first[q.question_id]
        section["conditions"][name] = {
            "PRRecall": {str(k): value for k, value in recall.items()},
            "interval_95": {
                str(k): _interval(
                    {q: 100.0 * (r is not None and r <= k) for q, r in first.items()}, images, seed
                )
                for k in ks
            },
            "groups": {
                group: {str(k): v for k, v in prrecall.score_dataset(ranks, ks).items()}
                for group, ranks in sorted(groups.items())
            },
        }
    return section
