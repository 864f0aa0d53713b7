"""The interface of retrievers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ravqa.core.records import Hit, Question
from ravqa.corpora.corpus import Corpus

Progress = Callable[[str, int, int], object]
"""Called as progress(what, done, total)."""


class Retriever(Protocol):
    """Finds passages for questions.

    Attributes:
        fingerprint: changes with everything that can change a ranking, the corpus apart.
        weights: the weights' names, for people; "" without weights.

    One that looks at questions' images has the attribute `sees_images` set to True.
    """

    fingerprint: str
    weights: str

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Build or open what searching `corpus` needs.

        Raises:
            UserError: a corpus is needed and there is none.
        """
        ...

    def retrieve(self, questions: Sequence[Question], k: int) -> list[list[Hit]]:
        """At most k passages per question, best first."""
        ...


def to_hits(ranking: Sequence[tuple[str, float]]) -> list[Hit]:
    """(id, score) pairs, best first, as hits with ranks from 1."""
    return [Hit(passage_id, score, rank) for rank, (passage_id, score) in enumerate(ranking, 1)]
