"""The interface of rerankers, and what they share.

A reranker is given questions with their hits, best first, and gives new hits: with other scores, in
another order, or fewer. Ranks count from 1 again. `Hit.score` is always the score of the last stage
that gave one, and what the decision rules weigh passages by; the retriever's own stays in
`Hit.retrieval_score`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from ravqa.core.cache import Store
from ravqa.core.errors import UserError
from ravqa.core.records import Hit, Passage, Question

Candidates = Sequence[tuple[Hit, Passage]]
"""Of one question: its hits, best first, each with its passage."""


class Reranker(Protocol):
    """Gives questions' hits new scores or another order, or leaves some out.

    Attributes:
        fingerprint: changes with everything that can change the hits given.
        weights: the weights' names, for people; "" without weights.

    One that looks at questions' images has the attribute `sees_images` set to True.
    """

    fingerprint: str
    weights: str

    @property
    def stores(self) -> Sequence[Store]:
        """Where scores are kept; none if they are not. Runs measure what came from there."""
        ...

    def rerank(
        self, questions: Sequence[Question], candidates: Sequence[Candidates]
    ) -> list[list[Hit]]:
        """New hits per question, best first, ranks from 1; none that were not among the old ones.

        Raises:
            DataError: an image cannot be decoded.
        """
        ...


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
    candidates: Sequence[Candidates], depth: int, scores: Sequence[float]
) -> list[list[Hit]]:
    """`rescored` for several questions.

    Args:
        scores: of the first `depth` hits of each question, one question after the other.
    """
    out: list[list[Hit]] = []
    start = 0
    for found in candidates:
        end = start + min(len(found), depth)
        out.append(rescored([hit for hit, _ in found], scores[start:end]))
        start = end
    return out
