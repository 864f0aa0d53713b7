"""The interface of rerankers and shared functions.

A reranker takes questions with their hits, best first, and returns new hits: with other scores, in
another order, or fewer. Ranks restart from 1. `Hit.score` is always the score of the last stage
that set one, and decision rules weight passages by it; the retriever's own stays in
`Hit.retrieval_score`.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ravqa.core.cache import Store
from ravqa.core.contracts import check_count, check_each, number_problem
from ravqa.core.errors import UserError, broken
from ravqa.core.outcomes import Failure, first_failure, or_empty
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import Part, Strict
from ravqa.readers.base import Abilities, Reader

Candidates = Sequence[tuple[Hit, Passage]]
"""One question's hits, best first, each with its passage."""


class RerankerConfig(Strict):
    """Base of rerankers' options: what is known about one before it is built."""

    @property
    def scored_hits(self) -> int | None:
        """Return how many of a question's hits get a new score; None for no limit."""
        return None

    @property
    def asks_reader(self) -> bool:
        """Return whether the reranker is built with a reader (`reader=`)."""
        return False

    @property
    def reader_part(self) -> Part | None:
        """Return the reader that it asks; None for the pipeline's own."""
        return None

    def reader_problem(self, reader: Abilities) -> str:
        """Return why the reader that it asks is of no use to it; blank if it is.

        The text continues the reranker's name: "asks a reader for probabilities, which ...".
        """
        return ""


class Reranker(ABC):
    """Rescores, reorders or drops questions' hits.

    Attributes:
        fingerprint: changes with everything that can change the hits returned.
        weights: human-readable names of the weights; blank without weights.
        supports_images: whether it looks at questions' images.
        stores: where scores are kept; empty if they are not. Runs measure what came from there.
        switched_off: what a reader that it asks does not do; see `ravqa.readers.base.Reader`.
        reader: the reader that it asks, if it asks one.
    """

    class Config(RerankerConfig):
        """Options; empty unless a reranker defines its own."""

    fingerprint: str
    weights: str = ""
    supports_images: bool = False
    stores: Sequence[Store] = ()
    switched_off: Mapping[str, str] = MappingProxyType({})
    reader: Reader | None = None

    def __init__(self, config: Any = None):
        """Take the reranker's validated options; None for their defaults.

        Raises:
            UserError: what the reranker needs (a package, a model, a file) does not exist.
        """
        self.config: Any = self.Config() if config is None else config

    @property
    def thread_safe(self) -> bool:
        """Whether several threads may call `rerank` at the same time.

        By default, rerankers whose reader may be called so are.
        """
        return self.reader is not None and self.reader.thread_safe

    @abstractmethod
    def rerank(
        self, questions: Sequence[Question], candidates: Sequence[Candidates]
    ) -> list[list[Hit] | Failure]:
        """Return new hits per question, best first, ranks from 1, out of the old ones.

        A question that cannot be reranked does not affect the others: its place holds a failure.

        Raises:
            DataError: an image cannot be decoded.
        """

    def counts(self) -> dict[str, int]:
        """Return counts of what the reranker did so far, for results; empty if it has none.

        Returns:
            `scored`: pairs or questions given to its model, not counting cached ones. `truncated`:
            those of them that were cut. `neutralised`: control tokens of the model that became
            plain text in the texts for it, cached pairs included.
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
            rankings: hits per question, best first.
        """

    def rerank(
        self, questions: Sequence[Question], candidates: Sequence[Candidates]
    ) -> list[list[Hit] | Failure]:
        """Return the hits that are kept.

        Raises:
            ContractError: `keep` did not return one value per hit, or failure, per question.
        """
        rankings = [[hit for hit, _ in found] for found in candidates]
        found = self.keep(questions, rankings)
        check_count("reranker", self, "keep", found, len(rankings))
        out: list[list[Hit] | Failure] = []
        for hits, kept in zip(rankings, found, strict=True):
            if isinstance(kept, Failure):
                out.append(kept)
                continue
            check_count("reranker", self, "keep", kept, len(hits))
            out.append(renumbered(itertools.compress(hits, kept)))
        return out


def checked_rankings(
    reranker: Reranker,
    found: Sequence[Sequence[Hit] | Failure],
    candidates: Sequence[Candidates],
) -> list[list[Hit] | Failure]:
    """Return what a reranker made of its candidates, checked.

    Raises:
        ContractError: not one list of hits or failure per question, a passage that comes twice or
            was not given, or a score that is not a number.
    """
    checked = check_each("reranker", reranker, "rerank", found, len(candidates), _hits_problem)
    for hits, given in zip(checked, candidates, strict=True):
        unknown = {hit.passage_id for hit in or_empty(hits)} - {hit.passage_id for hit, _ in given}
        if unknown:
            what = f"it returned from rerank passages that it was not given: {min(unknown)!r}"
            raise broken(reranker, "reranker", what)
    return checked


def _hits_problem(hits: object) -> str:
    """Return what is wrong with one question's ranking; an empty string if nothing."""
    if not isinstance(hits, list | tuple) or not all(isinstance(hit, Hit) for hit in hits):
        return f"{type(hits).__name__} instead of a list of Hit"
    for hit in hits:
        if problem := number_problem(hit.score, f"a score of passage {hit.passage_id}"):
            return problem
    if len({hit.passage_id for hit in hits}) < len(hits):
        return "a passage twice for one question"
    return ""


def renumbered(hits: Iterable[Hit]) -> list[Hit]:
    """Return the hits in the given order, with ranks from 1."""
    return [replace(hit, rank=rank) for rank, hit in enumerate(hits, 1)]


def rescored(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    """Return the hits by decreasing new score; equal scores keep their order.

    Args:
        scores: new scores of the first hits. Hits without one stay after the others in their order,
            with the lowest new score: so a filter by score never keeps an unscored passage while it
            drops a scored one.

    Raises:
        UserError: a score is not a number, as when a model overflows in half precision.
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
    """Apply `rescored` to several questions; a question fails if one of its scores does.

    Args:
        candidates: hits per question.
        depth: how many of a question's hits have a score.
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
