"""Retrievers for comparison: no passages, the oracle, and random passages."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from pydantic import Field, model_validator

from ravqa.core.cache import Store
from ravqa.core.errors import UserError
from ravqa.core.factory import Session, build_part, part_config
from ravqa.core.progress import Progress
from ravqa.core.records import Hit, Question
from ravqa.core.settings import Part, Strict, fingerprint
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import EncodingStats
from ravqa.metrics.evqa import single_answers
from ravqa.metrics.prrecall import first_hit
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.base import Retriever


def _needed(corpus: Corpus | None, name: str) -> Corpus:
    if corpus is None:
        raise UserError(f"the retriever {name} needs passages: give a file with --corpus")
    return corpus


class NoRetriever(Retriever):
    """A retriever without passages, to measure what the reader knows by itself."""

    weights = ""
    stores: Sequence[Store] = ()
    thread_safe = True

    class Config(Strict):
        """No options."""

    def __init__(self, config: Config | None = None):
        self.fingerprint = fingerprint("none/1")

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Do nothing."""

    def retrieve(self, questions: Sequence[Question], k: int) -> list[list[Hit]]:
        """Return an empty ranking per question."""
        return [[] for _ in questions]


class OracleRetriever(Retriever):
    """A retriever that puts passages with a reference answer (in PRRecall's sense) first.

    The order is another retriever's: of its best `depth` passages, those that contain an answer
    come first. If none does, the first such passage of the corpus is put in front. So the oracle
    never lacks an answer string that the corpus has, but the passage need not be about the
    question: "China" occurs in many.
    """

    class Config(Strict):
        """Options.

        Attributes:
            base: the retriever whose order is kept.
            depth: number of its best passages that are searched for an answer.
        """

        builds_parts: ClassVar[bool] = True
        base: Part = Part(name="late-interaction")
        depth: int = Field(default=200, ge=1)

        @model_validator(mode="after")
        def _check_base(self) -> Self:
            part_config(RETRIEVERS, self.base, "retriever.base")
            return self

    config: Config

    def __init__(
        self, config: Config, base: Retriever | None = None, *, session: Session | None = None
    ):
        """Wrap `base`, or build the one that the configuration names."""
        self.config = config
        self.base: Retriever = base or build_part(
            RETRIEVERS, config.base, "retriever.base", session=session
        )
        self.weights = self.base.weights
        self.stores = self.base.stores
        self.fingerprint = fingerprint("oracle/1", self.base.fingerprint, config.depth)
        self._corpus: Corpus | None = None

    @classmethod
    def depth(cls, config: Config) -> int:
        """Return the option `depth`."""
        return config.depth

    @property
    def supports_images(self) -> bool:
        """Whether the wrapped retriever looks at questions' images."""
        return self.base.supports_images

    @property
    def encodes(self) -> bool:
        """Whether the wrapped retriever encodes passages."""
        return self.base.encodes

    @property
    def encoded(self) -> Mapping[str, EncodingStats]:
        """Statistics of what the wrapped retriever encoded."""
        return self.base.encoded

    def encode(self, corpus: Corpus, progress: Progress | None = None) -> EncodingStats | None:
        """Encode the corpus for the wrapped retriever."""
        return self.base.encode(corpus, progress)

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Prepare the wrapped retriever.

        Raises:
            UserError: the corpus is missing.
        """
        self._corpus = _needed(corpus, "oracle")
        self.base.prepare(corpus, progress)

    def retrieve(self, questions: Sequence[Question], k: int) -> list[list[Hit]]:
        """Return answer-bearing passages first; ranks are renumbered, scores kept."""
        rankings = self.base.retrieve(questions, max(k, self.config.depth))
        return [self._sorted(q, hits)[:k] for q, hits in zip(questions, rankings, strict=True)]

    def _sorted(self, question: Question, hits: Sequence[Hit]) -> list[Hit]:
        corpus = _needed(self._corpus, "oracle")
        answers = single_answers(question.answers, question.question_type)

        def bears(passage_id: str) -> bool:
            return first_hit(answers, [corpus[passage_id].content]) is not None

        with_answer = [h for h in hits if bears(h.passage_id)]
        if not with_answer:
            found = next((passage_id for passage_id in corpus if bears(passage_id)), None)
            if found is not None:
                with_answer = [Hit(found, hits[0].score if hits else 0.0, 1)]
        first = {h.passage_id for h in with_answer}
        ordered = [*with_answer, *(h for h in hits if h.passage_id not in first)]
        return [Hit(h.passage_id, h.score, rank) for rank, h in enumerate(ordered, 1)]


class RandomRetriever(Retriever):
    """A retriever of random passages, to measure how the reader handles unrelated text."""

    weights = ""
    stores: Sequence[Store] = ()
    thread_safe = True

    class Config(Strict):
        """Options.

        Attributes:
            seed: a question's passages depend only on it and the question's id.
        """

        seed: int = 0

    config: Config

    def __init__(self, config: Config):
        self.config = config
        self.fingerprint = fingerprint("random/1", config.seed)
        self._ids: list[str] = []

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Read the corpus's ids.

        Raises:
            UserError: the corpus is missing.
        """
        self._ids = list(_needed(corpus, "random"))

    def retrieve(self, questions: Sequence[Question], k: int) -> list[list[Hit]]:
        """Return k different passages per question, all with score 0."""
        out = []
        for question in questions:
            rng = random.Random(f"{self.config.seed}/{question.question_id}")
            chosen = rng.sample(self._ids, min(k, len(self._ids)))
            out.append([Hit(passage_id, 0.0, rank) for rank, passage_id in enumerate(chosen, 1)])
        return out
