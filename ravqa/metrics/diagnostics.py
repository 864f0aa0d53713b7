"""How retrieval and reading work together: RA-VQA's diagnostics (Lin and Byrne, EMNLP 2022).

Released code: LinWeizheDragon/Retrieval-Augmented-Visual-Question-Answering,
src/metrics/metrics_processors.py. The definitions are the paper's; where the released code departs
from them (the order of candidates, the case of documents), this module does not follow it. Answers
are compared after the VQA clean-up, which is always applied here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from ravqa.metrics.vqa import normalise

CELLS = ("successful_hit", "successful_no_hit", "failed_hit", "failed_no_hit")

Key = TypeVar("Key", bound=Hashable)


def is_in_document(prediction: str, document: str) -> bool:
    """Return whether a document contains a prediction, both cleaned up; False if it is empty."""
    wanted = normalise(prediction)
    return bool(wanted) and wanted in normalise(document)


def hit_success_ratio(with_retrieval: Mapping[Key, bool], without: Mapping[Key, bool]) -> float:
    """Return the share of questions right with retrieval and wrong without it (HSR), 0 to 1.

    Args:
        with_retrieval, without: per question whether the answer is right (EM).

    Raises:
        ValueError: the questions differ, or there are none.
    """
    return _share(with_retrieval, without, right_without=False)


def free_success_ratio(with_retrieval: Mapping[Key, bool], without: Mapping[Key, bool]) -> float:
    """Return the share of questions right both with and without retrieval (FSR), 0 to 1.

    Raises:
        ValueError: as `hit_success_ratio`.
    """
    return _share(with_retrieval, without, right_without=True)


def _share(first: Mapping[Key, bool], second: Mapping[Key, bool], *, right_without: bool) -> float:
    if not first or first.keys() != second.keys():
        raise ValueError("both runs must have answered the same questions, at least one")
    return sum(bool(first[q]) and bool(second[q]) is right_without for q in first) / len(first)


def hit_table(pairs: Iterable[tuple[bool, bool]]) -> dict[str, float]:
    """Return the shares (0 to 1) of the four cells over (question, document) pairs.

    successful or failed: the answer read from the document is right (`is_answer`) or not; hit or
    no_hit: the document contains it (`is_in_document`) or not.

    Args:
        pairs: per question and document: right, in the document. With only the pair that each
            question's answer was chosen from, these are RA-VQA's "selected" values.

    Raises:
        ValueError: there are no pairs.
    """
    counts = dict.fromkeys(CELLS, 0)
    for right, inside in pairs:
        counts[CELLS[2 * (not right) + (not inside)]] += 1
    total = sum(counts.values())
    if not total:
        raise ValueError("the hit table needs at least one document")
    return {cell: count / total for cell, count in counts.items()}
