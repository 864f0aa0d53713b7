"""Shared parts of results.json's sections: dataset, question types, intervals, tests.

Scores depend only on the samples, so that a run can be scored again without a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar, cast

from ravqa.core.records import Question
from ravqa.datasets.base import Dataset
from ravqa.evaluation.schema import Bounds, Comparison, Predicted, ScoredDataset
from ravqa.metrics.statistics import intervals

T = TypeVar("T")
Id = int | str
Samples = Mapping[Id, Predicted]

Recall = Literal["PRRecall", "Recall", "ArticleRecall"]
RECALLS: tuple[Recall, ...] = ("PRRecall", "Recall", "ArticleRecall")
"""The kinds of recall: by answers in passages, by ids of passages, by articles."""

DECIMALS = 4
"""Decimals of percents in results; enough not to round twice (67.6471 is 67.6, not 67.7)."""


def dataset_section(dataset: Dataset) -> ScoredDataset:
    """Return the description of the dataset in a file of results."""
    section: ScoredDataset = {
        "name": dataset.name,
        "label": dataset.label,
        "sample": dataset.sample,
        "split": dataset.split,
        "questions": len(dataset.questions),
        "images": len({q.image_id for q in dataset.questions}),
    }
    return cast(ScoredDataset, {**dataset.info, **section})


def by_type(
    dataset: Dataset, questions: Sequence[Question], values: Mapping[Id, T]
) -> dict[str, dict[Id, T]]:
    """Return the values of each question type, types in order of their names."""
    groups: dict[str, dict[Id, T]] = {}
    for q in questions:
        name = type_name(dataset, q)
        if name is not None:
            groups.setdefault(name, {})[q.question_id] = values[q.question_id]
    return dict(sorted(groups.items()))


def type_name(dataset: Dataset, question: Question) -> str | None:
    """Return the name of a question's type, by which results are grouped; None without a type."""
    kind = question.question_type
    return None if kind is None else dataset.question_types.get(kind, kind)


def images_of(questions: Sequence[Question]) -> dict[Id, Id | None]:
    """Return the image of each question, which intervals and tests resample."""
    return {q.question_id: q.image_id for q in questions}


def interval_of(scores: Mapping[Id, float], images: Mapping[Id, Id | None], seed: int) -> Bounds:
    """Return the 95 % interval of the mean, if it means something (`intervals.estimate`)."""
    clusters = [images[q] for q in scores]
    found = intervals.bootstrap(list(scores.values()), clusters, seed=seed)
    return intervals.estimate(found, clusters).bounds(DECIMALS)


def tested(
    first: Mapping[Id, float],
    second: Mapping[Id, float],
    images: Mapping[Id, Id | None],
    seed: int,
) -> Comparison:
    """Compare two conditions' scores, in percent, on the same questions."""
    test = intervals.paired_test(first, second, images, seed=seed)
    found = intervals.estimate_of_difference(test, first, second, images)
    return {
        "difference": round(found.value, DECIMALS),
        "interval_95": found.bounds(DECIMALS),
        "p_value": round(test.p_value, 5),
        "wins": test.wins,
        "losses": test.losses,
        "ties": test.ties,
    }
