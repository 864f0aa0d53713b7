"""Hard negatives on disk: what `ravqa mine` writes, and the samples of runs.

A line of a file of negatives belongs to one question:

    {"question_id": 7, "negatives": [{"id": "p3", "score": 12.5}, ...], "positives": [...]}

"negatives" are passages that were found and are not relevant, the best first; "positives" the
relevant ones among those found, for their scores. Scores are the last reranker's, or the
retriever's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import file_digest
from ravqa.core.settings import fingerprint
from ravqa.corpora.tables import read_jsonl
from ravqa.evaluation.schema import read_samples
from ravqa.runs.folder import MAIN, samples_name

Found = list[tuple[str, float | None]]
"""Ids of passages that were found for a question, the best first, with their scores."""


def read_negatives(path: Path) -> tuple[dict[str, Found], str]:
    """Return what was found for each question, by its id as text, and the file's fingerprint.

    Args:
        path: a file of negatives, or a run's folder.

    Raises:
        UserError: it is neither.
        DataError: a broken line (file and line are named).
    """
    if path.is_dir():
        samples = path / samples_name(MAIN)
        if not samples.is_file():
            raise UserError(f"{path} is no run: it has no {samples.name}")
        found: dict[str, Found] = {
            str(sample["question_id"]): [(i, float(score)) for i, score in sample["hits"]]
            for _, sample in read_samples(samples)
        }
        return found, fingerprint(file_digest(samples))
    found = {}
    for number, row in read_jsonl(path):
        where = f"{path}, line {number}"
        if "question_id" not in row:
            raise DataError(f"{where}: key 'question_id' is missing")
        found[str(row["question_id"])] = [
            *_passages(row.get("negatives", []), where),
            *_passages(row.get("positives", []), where),
        ]
    return found, fingerprint(file_digest(path))


def line(
    question_id: int | str, negatives: Iterable[tuple[str, float]], positives: Mapping[str, float]
) -> dict[str, Any]:
    """Return a question's line in a file of negatives."""
    return {
        "question_id": question_id,
        "negatives": [{"id": i, "score": score} for i, score in negatives],
        "positives": [{"id": i, "score": score} for i, score in positives.items()],
    }


def _passages(value: Any, where: str) -> Found:
    if not isinstance(value, list):
        raise DataError(f"{where}: a list of passages is expected")
    out: Found = []
    for item in value:
        given = {"id": item} if isinstance(item, str) else item
        score = given.get("score") if isinstance(given, dict) else None
        if (
            not isinstance(given, dict)
            or not isinstance(given.get("id"), str)
            or isinstance(score, bool)
            or not isinstance(score, int | float | None)
        ):
            raise DataError(f'{where}: a passage is an id, or {{"id": ..., "score": ...}}')
        out.append((given["id"], None if score is None else float(score)))
    return out
