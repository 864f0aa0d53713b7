"""What rules make of a judge's verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ravqa.core.outcomes import Failure, succeeded
from ravqa.metrics.judges.base import Judge, NotAttempted, NoVerdict

ACCEPTED = 0.5  # an answer counts as right from this probability of a judge


class Asked(NamedTuple):
    """What a judge is asked: whether a candidate answer means the same as a reference."""

    question: str
    reference: str
    candidate: str


def judged(
    scores: Sequence[float | Failure], asked: Sequence[tuple[int, Asked]], judge: Judge | None
) -> list[float | Failure]:
    """Return the scores after a judge was asked about some of them, all at once.

    One verdict that accepts makes a score 1, and one that the answer does not try to answer a 0
    that says so. Without a verdict that accepts, a score of which a verdict is missing is
    a failure: it hangs on that verdict.

    Args:
        scores: by row, before the judge is asked.
        asked: the row that each triple belongs to, and the triple.
        judge: None leaves the scores.
    """
    found = list(scores)
    if judge is None or not asked:
        return found
    failed: dict[int, list[Failure]] = {}
    verdicts = judge.judge(*map(list, zip(*(triple for _, triple in asked), strict=True)))
    for (row, _), probability in zip(asked, verdicts, strict=True):
        if isinstance(probability, Failure):
            failed.setdefault(row, []).append(probability)
        elif math.isnan(probability):
            failed.setdefault(row, []).append(NoVerdict("the judge gave no verdict"))
        elif probability >= ACCEPTED:
            found[row] = 1.0
        elif isinstance(probability, NotAttempted) and not found[row]:
            found[row] = probability
    for row, failures in failed.items():
        if not found[row]:
            found[row] = _worst(failures)
    return found


def _worst(failures: Sequence[Failure]) -> Failure:
    """The failure that says most of why there is no verdict: a fatal one, one of the judge's."""
    return min(failures, key=lambda f: (not f.fatal, isinstance(f, NoVerdict)))


def certain(score: float | Failure) -> float:
    """Return a score; 0 where the judge gave no verdict.

    Raises:
        PromptError, ServerError: the judge failed.
    """
    return 0.0 if isinstance(score, NoVerdict) else succeeded(score)


def judge_settings(judge: Judge | None) -> dict[str, Any]:
    """Return the judge for results: its name, and the fingerprint of its weights and settings.

    `judge_labels` is there for three labels.
    """
    return {
        "judge": judge.name if judge else "none (exact match only)",
        "judge_fingerprint": judge.fingerprint if judge else None,
        **({"judge_labels": 3} if judge and judge.labels == 3 else {}),
    }
