"""Retrieval measured by passages that are known to be relevant (their ids).

`recall_at_k` is what M2KR and RA-VQA report (LinWeizheDragon/FLMR, example_use_preflmr.py; RA-VQA,
compute_DPR_scores_with_pos_ids): whether any relevant passage is among the first K. Elsewhere that
is called success or hit rate; it equals the share of relevant passages found if there is exactly
one. Precision, reciprocal rank and nDCG are the usual ones with binary relevance, as in trec_eval.

Every function scores one question; a dataset's score is the mean over its questions. Ids are equal
if their strings are. A passage that occurs twice in a ranking counts only at its first position.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

DEFAULT_KS = (1, 5, 10, 20)


def recall_at_k(
    ranking: Sequence[str], relevant: Collection[str], ks: Sequence[int] = DEFAULT_KS
) -> dict[int, float]:
    """Return 1.0 for each K at which one of the first K passages is relevant, else 0.0.

    Args:
        ranking: passage ids, best first.
        relevant: ids of the relevant passages.

    Raises:
        ValueError: nothing is relevant, or a K below 1.
    """
    flags = _flags(ranking, relevant)
    return {k: float(any(flags[:k])) for k in checked(ks)}


def precision_at_k(
    ranking: Sequence[str], relevant: Collection[str], ks: Sequence[int] = DEFAULT_KS
) -> dict[int, float]:
    """Return the share of relevant passages among the first K; missing ones are misses.

    Raises:
        ValueError: as `recall_at_k`.
    """
    flags = _flags(ranking, relevant)
    return {k: sum(flags[:k]) / k for k in checked(ks)}


def article_recall_at_k(
    ranking: Sequence[str],
    relevant: Collection[str],
    article_of: Mapping[str, str],
    ks: Sequence[int] = DEFAULT_KS,
) -> dict[int, float]:
    """Return `recall_at_k` over articles: K counts articles, each at its best passage.

    Args:
        ranking: passage ids, best first.
        relevant: ids of the relevant articles.
        article_of: the article of every passage of the ranking (its URL, or its entity).

    Raises:
        ValueError: as `recall_at_k`.
        KeyError: a passage has no article.
    """
    articles = list(dict.fromkeys(article_of[passage] for passage in ranking))
    return recall_at_k(articles, relevant, ks)


def reciprocal_rank(ranking: Sequence[str], relevant: Collection[str]) -> float:
    """Return 1 / rank of the first relevant passage, or 0; the mean over questions is MRR.

    Raises:
        ValueError: nothing is relevant.
    """
    flags = _flags(ranking, relevant)
    return 1 / (flags.index(True) + 1) if any(flags) else 0.0


def ndcg_at_k(
    ranking: Sequence[str], relevant: Collection[str], ks: Sequence[int] = DEFAULT_KS
) -> dict[int, float]:
    """Return normalised discounted cumulative gain: gain 1 at rank i counts 1 / log2(i + 1).

    Raises:
        ValueError: as `recall_at_k`.
    """
    flags = _flags(ranking, relevant)
    return {k: _dcg(flags[:k]) / _dcg([True] * min(k, len(set(relevant)))) for k in checked(ks)}


def checked(ks: Sequence[int]) -> Sequence[int]:
    """Return `ks` if all of them are at least 1.

    Raises:
        ValueError: a K below 1.
    """
    if any(k < 1 for k in ks):
        raise ValueError("K is a number of passages, at least 1")
    return ks


def _flags(ranking: Sequence[str], relevant: Collection[str]) -> list[bool]:
    if not relevant:
        raise ValueError("retrieval by ids needs at least one relevant passage")
    seen: set[str] = set()
    flags = []
    for passage in ranking:
        flags.append(passage in relevant and passage not in seen)
        seen.add(passage)
    return flags


def _dcg(flags: Sequence[bool]) -> float:
    return sum(1 / math.log2(rank + 1) for rank, hit in enumerate(flags, 1) if hit)
