"""Fusion of several retrievers: reciprocal rank fusion, or a sum of normalised scores.

With weights w_i and, over the `depth` passages that retriever i returns for a question, the rank
r_i(d) from 1 and the score s_i(d):

- `rrf`: sum over i of w_i / (k + r_i(d)), k = 60 (Cormack, Clarke and Büttcher 2009, "Reciprocal
  rank fusion outperforms Condorcet and individual rank learning methods", SIGIR);
- `sum`: sum over i of w_i * (s_i(d) - min_i) / (max_i - min_i), CombSUM (Fox and Shaw 1994,
  "Combination of multiple searches", TREC-2) over scores scaled to 0 to 1 (Lee 1997, "Analyses of
  multiple evidence combination", SIGIR). If a retriever's scores are all the same, each counts 1.

A retriever adds nothing to the score of a passage that it does not return.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from ravqa.core.errors import UserError
from ravqa.core.factory import Session, build_part, check_weighted, part_config
from ravqa.core.progress import Progress
from ravqa.core.records import Hit, Question
from ravqa.core.settings import Part, Strict, fingerprint
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import EncodingStats
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.base import Retriever, to_hits


class FusionRetriever(Retriever):
    """A retriever that asks several retrievers and fuses their rankings.

    Passages with equal scores are ordered by their rank in the first retriever, then in the
    second, and so on.
    """

    class Config(Strict):
        """Options.

        Attributes:
            retrievers: at least one; each with its own options.
            weights: one per retriever; empty for equal weights.
            method: "rrf" or "sum".
            k: the constant of "rrf": the larger, the less the first ranks stand out.
            depth: number of passages of each retriever that are fused.
        """

        builds_parts: ClassVar[bool] = True
        retrievers: tuple[Part, ...] = Field(min_length=1)
        weights: tuple[float, ...] = ()
        method: Literal["rrf", "sum"] = "rrf"
        k: float = Field(default=60, ge=0)
        depth: int = Field(default=200, ge=1)

        @model_validator(mode="after")
        def _check_parts(self) -> Self:
            check_weighted(RETRIEVERS, self.retrievers, self.weights, _where)
            return self

    config: Config

    def __init__(self, config: Config, *, session: Session | None = None):
        """Build the retrievers.

        Raises:
            UserError: one of them cannot be built.
        """
        self.config = config
        self.retrievers: list[Retriever] = [
            build_part(RETRIEVERS, part, _where(i), session=session)
            for i, part in enumerate(config.retrievers)
        ]
        self.stores = [store for part in self.retrievers for store in part.stores]
        self._weights = config.weights or (1.0,) * len(self.retrievers)
        self.weights = ", ".join(filter(None, (part.weights for part in self.retrievers)))
        self.fingerprint = fingerprint(
            "fusion/1",
            [part.fingerprint for part in self.retrievers],
            config.model_dump(exclude={"retrievers"}),
        )

    @classmethod
    def depth(cls, config: Config) -> int:
        """Return the option `depth`."""
        return config.depth

    @classmethod
    def explains(cls, config: Config) -> bool:
        """Return whether one of the retrievers has an `explainer`."""
        parts = enumerate(config.retrievers)
        return any(
            RETRIEVERS.get(part.name).explains(part_config(RETRIEVERS, part, _where(i)))
            for i, part in parts
        )

    @property
    def explainer(self) -> Retriever | None:
        """The first retriever that can explain its rankings."""
        return next((own for part in self.retrievers if (own := part.explainer)), None)

    @property
    def encodes(self) -> bool:
        """Whether one of the retrievers encodes passages."""
        return any(part.encodes for part in self.retrievers)

    @property
    def supports_images(self) -> bool:
        """Whether one of the retrievers looks at questions' images."""
        return any(part.supports_images for part in self.retrievers)

    @property
    def encoded(self) -> dict[str, EncodingStats]:
        """The summed statistics of all retrievers that encode."""
        total: dict[str, EncodingStats] = {}
        for part in self.retrievers:
            for what, stats in part.encoded.items():
                total[what] = total.get(what, EncodingStats()) + stats
        return total

    @property
    def left_out(self) -> Sequence[str]:
        """What the retrievers leave out, one after the other."""
        return [line for part in self.retrievers for line in part.left_out]

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Prepare every retriever.

        Raises:
            UserError: the corpus is missing and one of them needs it.
        """
        for part in self.retrievers:
            part.prepare(corpus, progress)

    def encode(self, corpus: Corpus, progress: Progress | None = None) -> EncodingStats | None:
        """Encode the corpus for every retriever that encodes; return None if all is indexed.

        Raises:
            UserError: none of them encodes passages.
        """
        encoding = [part for part in self.retrievers if part.encodes]
        if not encoding:
            raise UserError("no retriever of the fusion encodes passages")
        made = [stats for part in encoding if (stats := part.encode(corpus, progress)) is not None]
        return sum(made, EncodingStats()) if made else None

    def retrieve(self, questions: Sequence[Question], k: int) -> list[list[Hit]]:
        """Return at most k passages per question, best first."""
        depth = max(k, self.config.depth)
        rankings = [part.retrieve(questions, depth) for part in self.retrievers]
        return [to_hits(self._fused(found)[:k]) for found in zip(*rankings, strict=True)]

    def _fused(self, rankings: Sequence[Sequence[Hit]]) -> list[tuple[str, float]]:
        gains: Callable[[Sequence[Hit]], list[float]]
        gains = self._by_rank if self.config.method == "rrf" else _by_score
        gained: dict[str, list[float]] = {}  # in the order of ties
        for weight, hits in zip(self._weights, rankings, strict=True):
            for hit, gain in zip(hits, gains(hits), strict=True):
                gained.setdefault(hit.passage_id, []).append(weight * gain)
        # Rounded only once, so that the same gains in another order give the same score.
        total = [(passage_id, math.fsum(parts)) for passage_id, parts in gained.items()]
        return sorted(total, key=lambda pair: -pair[1])

    def _by_rank(self, hits: Sequence[Hit]) -> list[float]:
        return [1 / (self.config.k + hit.rank) for hit in hits]


def _by_score(hits: Sequence[Hit]) -> list[float]:
    scores = [hit.score for hit in hits]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]


def _where(i: int) -> str:
    return f"retriever.retrievers.{i}"
