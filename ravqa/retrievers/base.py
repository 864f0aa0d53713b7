"""The interface of retrievers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AllowInfNan

from ravqa.core.cache import Store
from ravqa.core.contracts import check_count, number_problem
from ravqa.core.errors import UserError, broken
from ravqa.core.progress import Progress
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import Strict
from ravqa.core.stored import as_type
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import EncodingStats

if TYPE_CHECKING:
    from PIL.Image import Image

    from ravqa.retrievers.explain import Explanation


class Retriever(ABC):
    """Finds passages for questions.

    Attributes:
        fingerprint: changes with everything that can change a ranking, except the corpus.
        weights: the weights' names, for display; "" without weights.
        stores: where rankings are kept; empty if they are not. Runs measure what came from there.
        thread_safe: whether several threads may call `retrieve` at the same time, and other
            retrievers work meanwhile that share its parts, such as an encoder.
    """

    class Config(Strict):
        """The retriever's options; a subclass with options overrides this class."""

    fingerprint: str
    weights: str = ""
    stores: Sequence[Store] = ()
    thread_safe: bool = False

    def __init__(self, config: Any = None):
        """Take the retriever's validated options; None for their defaults.

        Raises:
            UserError: what the retriever needs (a package, a model, a file) does not exist.
        """
        self.config: Any = self.Config() if config is None else config

    @classmethod
    def depth(cls, config: Any) -> int:
        """Return the number of passages that are always ranked; 0 for only those requested.

        Args:
            config: an instance of `Config`.
        """
        return 0

    @classmethod
    def explains(cls, config: Any) -> bool:
        """Return whether this configuration gives an `explainer`, without loading a model."""
        return False

    @classmethod
    def sees_images(cls, config: Any) -> bool:
        """Return whether this configuration looks at images, if that is known without a model."""
        return False

    @classmethod
    def corpus_problem(cls, config: Any, corpus: Corpus) -> str:
        """Return why a configuration cannot search a corpus, without loading a model; "" if it can.

        Raises:
            UserError: as `prepare`.
        """
        return ""

    @property
    def supports_images(self) -> bool:
        """Whether the retriever looks at questions' images."""
        return False

    @property
    def encodes(self) -> bool:
        """Whether the retriever encodes passages, and so defines `encode`."""
        return False

    @property
    def encoded(self) -> Mapping[str, EncodingStats]:
        """Statistics of what was encoded: "passages" (if known) and "queries"."""
        return {}

    @property
    def left_out(self) -> Sequence[str]:
        """What it leaves out of files of its own, each with the reason; known after `prepare`."""
        return ()

    @property
    def explainer(self) -> Retriever | None:
        """The retriever whose `explain_passages` can be called: this one, a part of it, or None."""
        return None

    @abstractmethod
    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Build or open what is needed to search `corpus`.

        Raises:
            UserError: a corpus is needed but missing.
        """

    @abstractmethod
    def retrieve(self, questions: Sequence[Question], k: int) -> list[list[Hit]]:
        """Return at most k passages per question, best first, without duplicates.

        Raises:
            PromptError: the retriever cannot process one of the questions.
        """

    def encode(self, corpus: Corpus, progress: Progress | None = None) -> EncodingStats | None:
        """Encode the part of the corpus that is not encoded yet, for `prepare` to index.

        Returns:
            The corpus's statistics; None if it is already indexed.

        Raises:
            UserError: the retriever does not encode passages; see `encodes`.
        """
        raise UserError(f"the retriever {type(self).__name__} encodes no passages")

    def explain_passages(
        self, question: Question, passages: Sequence[Passage]
    ) -> list[Explanation]:
        """Return which parts of the question matched which of each passage; needs no `prepare`.

        Raises:
            UserError: the retriever cannot explain its rankings; see `explainer`.
        """
        raise UserError(f"the retriever {type(self).__name__} cannot say what matched")

    def seen_image(self, image: Path | bytes) -> tuple[Image, tuple[int, int]] | None:
        """Return an image as the encoder receives it, and the rows and columns of its patches.

        None if the encoder makes no vectors of patches.

        Raises:
            DataError: the image cannot be decoded.
        """
        return None


def ranking_of(value: Any) -> list[tuple[str, float]]:
    """Return a ranking that was kept on disk: pairs of id and score.

    Raises:
        ValueError: it is no ranking.
    """
    return as_type(list[tuple[str, Annotated[float, AllowInfNan(False)]]], value)


def to_hits(ranking: Sequence[tuple[str, float]]) -> list[Hit]:
    """Return (id, score) pairs, best first, as hits with ranks from 1."""
    return [Hit(passage_id, score, rank) for rank, (passage_id, score) in enumerate(ranking, 1)]


def checked_hits(
    retriever: Retriever, found: Sequence[Sequence[Hit]], questions: int, k: int
) -> list[list[Hit]]:
    """Return the rankings that a retriever gave for a number of questions, checked.

    Raises:
        ContractError: not one list of hits per question, more than k hits, a duplicate passage,
            ranks that do not count from 1, or a score that is not a number.
    """
    check_count("retriever", retriever, "retrieve", found, questions)
    for hits in found:
        if problem := _problem(hits, k):
            raise broken(retriever, "retriever", f"it returned from retrieve {problem}")
    return [list(hits) for hits in found]


def _problem(hits: Any, k: int) -> str:
    """Return what is wrong with one question's ranking; an empty string if nothing."""
    if not isinstance(hits, list | tuple):
        return f"{type(hits).__name__} instead of a list of Hit"
    if len(hits) > k:
        return f"{len(hits)} hits where at most {k} are asked for"
    for rank, hit in enumerate(hits, 1):
        if not isinstance(hit, Hit):
            return f"{type(hit).__name__} instead of a Hit (`to_hits`)"
        if problem := number_problem(hit.score, f"a score of passage {hit.passage_id}"):
            return problem
        if hit.rank != rank:
            return f"the rank {hit.rank} of hit {rank}: ranks count from 1 (`to_hits`)"
    names = [hit.passage_id for hit in hits]
    twice = next((name for name in names if names.count(name) > 1), None)
    return "" if twice is None else f"passage {twice!r} twice for one question"
