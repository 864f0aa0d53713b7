"""The interface of rerankers, and what they share.

A reranker is given questions with their hits, best first, and gives new hits: with other scores, in
another order, or fewer. Ranks count from 1 again. `Hit.score` is always the score of the last stage
that gave one, and what the decision rules weigh passages by; the retriever's own stays in
`Hit.retrieval_score`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ravqa.core.cache import Store
from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure, first_failure
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import Part, Strict

Candidates = Sequence[tuple[Hit, Passage]]
"""Of one question: its hits, best first, each with its passage."""


class RerankerConfig(Strict):
    """Base of rerankers' options: what is known of one before it is built."""

    @property
    def scored_hits(self) -> int | None:
        """How many of a question's hits get a new score; None where that has no limit."""
        return None

    @property
    def asks_reader(self) -> bool:
        """Whether the reranker is built with a reader (`reader=`)."""
        return False

    @property
    def reader_part(self) -> Part | None:
        """The reader that it asks; None for the pipeline's own."""
        return None


class Reranker(ABC):
    """Gives questions' hits new scores or another order, or leaves some out.

    Attributes:
        fingerprint: changes with everything that can change the hits returned.
        weights: names of the weights, for people; blank without weights.
        supports_images: it looks at questions' images.
        stores: where scores are kept; none if they are not. Runs measure what came from there.
    """

    class Config(RerankerConfig):
        """Options; none, unless a reranker has its own."""

    fingerprint: str
    weights: str = ""
    supports_images: bool = False
    stores: Sequence[Store] = ()

    @abstractmethod
    def rerank(
        self, questions: Sequence[Question], candidates: Sequence[Candidates]
    ) -> list[list[Hit] | Failure]:
        """Return new hits per question, best first, ranks from 1, out of the old ones.

        A question that cannot be reranked costs no other: its place holds a failure.

        Raises:
            DataError: an image cannot be decoded.
        """

    def counts(self) -> dict[str, int]:
        """Return what the reranker did so far, for results; nothing, unless it has counts.

        Returns:
            `scored`: pairs or questions that its model was given, caches apart. `truncated`: those
            of them that were cut.
        """
        return {}


class PassageFilter(Reranker):
    """Base of filters and gates: hits are kept or left out; scores and order stay."""

    @abstractmethod
    def keep(
        self, questions: Sequence[Question], rankings: Sequence[Sequence[Hit]]
    ) -> list[list[bool] | Failure]:
        """Return for each question's hits whether they are kept.

        Args:
            questions: the questions.
            rankings: per question its hits, best first.
        """

    def rerank(
        self, questions: Sequence[Question], candidates: Sequence[Candidates]
    ) -> list[list[Hit] | Failure]:
        """Return the hits that are kept."""
        rankings = [[hit for hit, _ in found] for found in candidates]
        return [
            kept
            if isinstance(kept, Failure)
            else renumbered(hit for hit, good in zip(hits, kept, strict=True) if good)
            for hits, kept in zip(rankings, self.keep(questions, rankings), strict=True)
        ]


def renumbered(hits: Iterable[Hit]) -> list[Hit]:
    """The hits in the order given, ranks from 1."""
    return [replace(hit, rank=rank) for rank, hit in enumerate(hits, 1)]


def rescored(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    """The hits by falling new score; equal scores keep their order.

    Args:
        scores: of the first hits. The hits without one stay behind the others in their order, and
            count as good as the worst of those: so a filter by score never keeps a passage that was
            not looked at where it drops one that was.

    Raises:
        UserError: a score is no number, as those of models that overflow in half precision.
    """
    if not scores:
        return renumbered(hits)
    for hit, score in zip(hits, scores, strict=False):
        if math.isnan(score):
            raise UserError(
                f"reranking: the score of passage {hit.passage_id} is not a number: set the "
                "model's dtype to float32"
            )
    new = [*scores, *[min(scores)] * (len(hits) - len(scores))]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    order += range(len(scores), len(hits))
    return renumbered(
        replace(hits[i], score=new[i], retrieval_score=hits[i].as_retrieved) for i in order
    )


def rescored_each(
    candidates: Sequence[Candidates], depth: int, scores: Sequence[float | Failure]
) -> list[list[Hit] | Failure]:
    """`rescored` for several questions; a question fails with one of its scores.

    Args:
        candidates: per question its hits.
        depth: how many of them have a score.
        scores: of the first `depth` hits of each question, one question after the other.
    """
    out: list[list[Hit] | Failure] = []
    start = 0
    for found in candidates:
        end = start + min(len(found), depth)
        own = scores[start:end]
        good = [score for score in own if not isinstance(score, Failure)]
        out.append(first_failure(own) or rescored([hit for hit, _ in found], good))
        start = end
    return out
