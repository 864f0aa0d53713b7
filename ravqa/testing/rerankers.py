"""The conformance suite of rerankers, passage filters and gates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Question
from ravqa.rerankers.base import (
    Candidates,
    PassageFilter,
    Reranker,
    RerankerConfig,
    checked_rankings,
)
from ravqa.retrievers.base import to_hits
from ravqa.testing.asserting import conformance, require, require_names, require_thread_safe
from ravqa.testing.retrievers import small_corpus, small_questions

_SCORES = (3.0, 2.5, 1.0, 0.5, 0.25)


@conformance(Reranker)
def check_reranker(
    reranker: Reranker,
    questions: Sequence[Question] | None = None,
    candidates: Sequence[Candidates] | None = None,
    *,
    atol: float = 1e-3,
) -> None:
    """Check a reranker, a passage filter or a gate: it is given a few questions with their hits.

    Args:
        reranker: the reranker, built.
        questions: the questions; None for three of the suite's own.
        candidates: their hits, best first, each with its passage; None for five of the suite's
            own, in another order for each question.
        atol: how far a score may be from that of the same pair in another batch.

    Raises:
        AssertionError: the reranker breaks the contract of `ravqa.rerankers.base.Reranker`.
    """
    name = type(reranker).__name__
    require_names(reranker, "fingerprint")
    require(isinstance(reranker.weights, str), f"{name}.weights is a text, blank without weights")
    require(isinstance(reranker.supports_images, bool), f"{name}.supports_images is True or False")
    require(
        issubclass(reranker.Config, RerankerConfig),
        f"{name}.Config is derived from ravqa.rerankers.base.RerankerConfig",
    )
    fingerprint = reranker.fingerprint
    asked = small_questions() if questions is None else list(questions)
    given = [_candidates(i) for i in range(len(asked))] if candidates is None else list(candidates)
    found = _reranked(reranker, asked, given)
    for own, ranking in zip(given, found, strict=True):
        _check_ranking(reranker, own, ranking)
    alone = [_reranked(reranker, [q], [own])[0] for q, own in zip(asked, given, strict=True)]
    require(
        all(_alike(a, b, atol) for a, b in zip(found, alone, strict=True)),
        f"{name}.rerank treats a question alike whatever is asked with it, in order: got {found} "
        f"together and {alone} alone",
    )
    pairs = [([q], [own]) for q, own in zip(asked, given, strict=True)] + [(asked, given)]
    require_thread_safe(
        reranker,
        "rerank",
        [partial(_reranked, reranker, *pair) for pair in pairs],
        lambda some, others: all(_alike(a, b, atol) for a, b in zip(some, others, strict=True)),
    )
    require(
        _reranked(reranker, asked[:1], [[]]) == [[]],
        f"{name}.rerank returns no hits for a question without any",
    )
    require(_reranked(reranker, [], []) == [], f"{name}.rerank returns [] for no questions")
    counts = reranker.counts()
    require(
        all(isinstance(n, int) and n >= 0 for n in counts.values()),
        f"{name}.counts returns numbers from 0, got {counts}",
    )
    require(reranker.fingerprint == fingerprint, f"{name}.fingerprint does not change by use")


def _candidates(turn: int) -> Candidates:
    passages = list(small_corpus().values())
    passages = passages[turn:] + passages[:turn]
    scored = zip([p.passage_id for p in passages], _SCORES, strict=True)
    return list(zip(to_hits(list(scored)), passages, strict=True))


def _reranked(
    reranker: Reranker, questions: Sequence[Question], candidates: Sequence[Candidates]
) -> list[list[Hit]]:
    found = checked_rankings(reranker, reranker.rerank(questions, candidates), candidates)
    out: list[list[Hit]] = []
    for outcome in found:
        if isinstance(outcome, Failure):
            raise AssertionError(
                f"{type(reranker).__name__}.rerank takes the suite's questions, got {outcome}"
            )
        out.append(list(outcome))
    return out


def _check_ranking(reranker: Reranker, given: Candidates, found: Sequence[Hit]) -> None:
    name = type(reranker).__name__
    require(
        [hit.rank for hit in found] == list(range(1, len(found) + 1)),
        f"{name}.rerank counts ranks from 1 (`renumbered` does), got {found}",
    )
    before = {hit.passage_id: hit for hit, _ in given}
    for hit in found:
        require(
            hit.as_retrieved == before[hit.passage_id].as_retrieved,
            f"{name}.rerank keeps the retriever's score in `retrieval_score`, got {hit}",
        )
    if isinstance(reranker, PassageFilter):
        kept = [(hit.passage_id, hit.score) for hit in found]
        left = [(i, hit.score) for i, hit in before.items() if i in {j for j, _ in kept}]
        require(kept == left, f"{name} is a filter: scores and order stay, got {found}")
    scores = [hit.score for hit in found]
    require(
        scores == sorted(scores, reverse=True), f"{name}.rerank returns the best first, got {found}"
    )


def _alike(some: Sequence[Hit], others: Sequence[Hit], atol: float) -> bool:
    return [hit.passage_id for hit in some] == [hit.passage_id for hit in others] and all(
        math.isclose(a.score, b.score, rel_tol=0, abs_tol=atol)
        for a, b in zip(some, others, strict=True)
    )
