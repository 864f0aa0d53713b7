"""A joint score of retrieval and reranking: of an article found by image and a section by text."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Question
from ravqa.core.settings import fingerprint
from ravqa.rerankers.base import Candidates, Reranker, RerankerConfig, renumbered, rescored


class Blend(Reranker):
    """Joins the retriever's score r and the last reranker's score s of a question's passages.

    The new score is w r' + (1 - w) s', where r' and s' are r and s scaled to 0 to 1 over the
    question's passages (as in the fusion `sum`); if all are equal, each is 1. Passages that no
    reranker scored keep r as s.
    """

    thread_safe = True

    class Config(RerankerConfig):
        """Options.

        Attributes:
            weight: w, of the retriever's score.
            per_article: most passages of one article that are kept, the best ones; None for all.
        """

        weight: float = Field(default=0.5, ge=0, le=1)
        per_article: int | None = Field(default=None, ge=1)

    config: Config

    def __init__(self, config: Config | None = None):
        self.config = config or self.Config()
        self.fingerprint = fingerprint("blend/1", self.config.model_dump())

    def rerank(
        self, questions: Sequence[Question], candidates: Sequence[Candidates]
    ) -> list[list[Hit] | Failure]:
        """Return the hits by decreasing joint score."""
        return [self._joined(found) for found in candidates]

    def _joined(self, found: Candidates) -> list[Hit]:
        weight = self.config.weight
        retrieved = _scaled([hit.as_retrieved for hit, _ in found])
        reranked = _scaled([hit.score for hit, _ in found])
        scores = [weight * r + (1 - weight) * s for r, s in zip(retrieved, reranked, strict=True)]
        hits = rescored([hit for hit, _ in found], scores)
        if self.config.per_article is None:
            return hits
        articles = {p.passage_id: (p.article_names or (p.passage_id,))[0] for _, p in found}
        counts: dict[str, int] = {}
        kept = []
        for hit in hits:
            article = articles[hit.passage_id]
            counts[article] = counts.get(article, 0) + 1
            if counts[article] <= self.config.per_article:
                kept.append(hit)
        return renumbered(kept)


def _scaled(scores: Sequence[float]) -> list[float]:
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]
