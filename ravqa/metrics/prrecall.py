"""Pseudo-relevance recall (PRRecall@K): is an answer string in one of the first K passages?

    PRRecall@K = mean over questions of max_{i <= K} [ some answer a: lower(a) in lower(text_i) ]

A success rate, not a fraction of relevant passages; plain substrings, no word boundaries ("art" is
in "party"). Sources: the three published versions agree but for trimming of the answer; this is the
one of LinWeizheDragon/FLMR, examples/example_use_preflmr.py (answers stripped and lower-cased).
Blank answers are dropped, as RA-VQA does; they would match every passage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

DEFAULT_KS = (1, 5, 10, 20)


def first_hit(answers: Sequence[str], texts: Sequence[str]) -> int | None:
    """Rank (from 1) of the first passage that holds an answer, or None.

    Args:
        answers: accepted strings; case and outer spaces do not matter.
        texts: the passages' searched text, best first.
    """
    wanted = {answer.strip().lower() for answer in answers} - {""}
    for rank, text in enumerate(texts, 1):
        lowered = text.lower()
        if any(answer in lowered for answer in wanted):
            return rank
    return None


def score_dataset(
    first_hits: Mapping[int | str, int | None], ks: Sequence[int] = DEFAULT_KS
) -> dict[int, float]:
    """PRRecall@K in percent, rounded to two decimals, for each K.

    Args:
        first_hits: per question the rank of its first answer-bearing passage (see `first_hit`).

    Raises:
        ValueError: no questions, or a K below 1.
    """
    if not first_hits:
        raise ValueError("PRRecall needs at least one question")
    if any(k < 1 for k in ks):
        raise ValueError("K counts passages: at least 1")
    ranks = list(first_hits.values())
    return {
        k: round(100 * sum(r is not None and r <= k for r in ranks) / len(ranks), 2) for k in ks
    }
