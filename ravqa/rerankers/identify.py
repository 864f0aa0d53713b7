"""A reader picks the thing in the photo among the names of the articles that were found.

The reader is given photo, question and names, and asked which of them it is. For each name it gives
the log-probability as the answer; the softmax over the names is the probability of the article.
Passages of an article have its probability as score, and `blend` can join it with the retriever's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

from pydantic import Field, model_validator

from ravqa.answering.prompt import PromptTemplate
from ravqa.core.cache import Memo
from ravqa.core.errors import UserError
from ravqa.core.factory import part_config
from ravqa.core.outcomes import Failure, first_failure
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import Part, TemplateName, fingerprint
from ravqa.images.decode import image_prints
from ravqa.readers import READERS
from ravqa.readers.base import Abilities, Prompt, Reader
from ravqa.rerankers.base import Candidates, Reranker, RerankerConfig, rescored

_WHY = "the reranker identify"


class Identify(Reranker):
    """Orders passages by the probability that their article is about the thing in the photo.

    Attributes:
        neutralised: how many control tokens in the prompts' values became plain text.
    """

    class Config(RerankerConfig):
        """Options.

        Attributes:
            reader: the reader to ask; None for the pipeline's own.
            prompt: a template in `prompts/`, or a file; it is given one passage of each article.
            articles: how many articles, the first ones, are shown. Passages of others come last,
                with the probability 0.
            keep: articles whose passages are kept, the likeliest ones; None for all.
            cache: keep probabilities on disk.
        """

        reader: Part | None = None
        prompt: TemplateName = "rerank-identify"
        articles: int = Field(default=10, ge=2)
        keep: int | None = Field(default=None, ge=1)
        cache: bool = True

        @property
        def asks_reader(self) -> bool:
            """Return True: it always asks a reader."""
            return True

        @property
        def reader_part(self) -> Part | None:
            """Return the reader that is asked; None for the pipeline's own."""
            return self.reader

        def reader_problem(self, reader: Abilities) -> str:
            """Return that the reader scores no answers, if so."""
            if reader.scores_answers:
                return ""
            ways = reader.ways_to(lambda own: own.scores_answers)
            keep = [f"set {way} of the reader, or " for way in ways]
            return (
                "asks a reader for the probability of names, which this reader does not give: "
                f"{''.join(keep)}choose another reader for it"
            )

        @model_validator(mode="after")
        def _check_parts(self) -> Self:
            if self.reader is not None:
                part_config(READERS, self.reader, "identify.reader")
            PromptTemplate.load(self.prompt)
            return self

    config: Config
    reader: Reader

    def __init__(self, config: Config, reader: Reader):
        """Load the prompt.

        Raises:
            UserError: the prompt does not exist; the reader gives no probabilities.
        """
        self.config = config
        if problem := config.reader_problem(reader.abilities):
            raise UserError(f"{_WHY} {problem}")
        self._template = PromptTemplate.load(config.prompt)
        self.reader = reader
        self._kept = Memo[float | Failure](
            "reranking" if config.cache and reader.deterministic else None, back=float
        )
        self.stores = self._kept.stores
        self.supports_images = reader.supports_images
        self.weights = reader.weights
        self.switched_off = reader.switched_off
        self.neutralised = 0
        self._counting = threading.Lock()
        self._scores = fingerprint("identify/1", reader.fingerprint)
        self.fingerprint = fingerprint(
            self._scores, self._template.source, config.articles, config.keep
        )

    def counts(self) -> dict[str, int]:
        """Return how many names the reader scored, and what was changed in the prompts."""
        return {"scored": self._kept.made, "neutralised": self.neutralised}

    def rerank(
        self, questions: Sequence[Question], candidates: Sequence[Candidates]
    ) -> list[list[Hit] | Failure]:
        """Return the hits by decreasing probability of their article; a sole article has 1.

        Raises:
            DataError: an image cannot be decoded.
        """
        shown = [self._shown(found) for found in candidates]
        prompts: list[Prompt] = []
        names: list[str] = []
        for question, articles in zip(questions, shown, strict=True):
            if len(articles) > 1:
                passages = [replace(p, title=_name(p)) for p in articles.values()]
                prompt, count = self._template.prompt(question, passages, reader=self.reader)
                with self._counting:
                    self.neutralised += count
                prompts += [prompt] * len(articles)
                names += map(_name, passages)
        images = image_prints([prompt.image for prompt in prompts])
        keys = [
            fingerprint(self._scores, prompt.text, image, *sorted(prompt.own), name)
            for prompt, image, name in zip(prompts, images, names, strict=True)
        ]
        scores = iter(
            self._kept.get(
                keys,
                lambda rows: self.reader.score_each(
                    [prompts[i] for i in rows], [names[i] for i in rows]
                ),
            )
        )
        out: list[list[Hit] | Failure] = []
        for found, articles in zip(candidates, shown, strict=True):
            own = [next(scores) for _ in articles] if len(articles) > 1 else [0.0] * len(articles)
            good = [score for score in own if not isinstance(score, Failure)]
            if failed := first_failure(own):
                out.append(failed)
            else:
                probability = dict(zip(articles, _softmax(good), strict=True))
                out.append(self._ordered(found, probability))
        return out

    def _shown(self, found: Candidates) -> dict[str, Passage]:
        """Return the first articles, each with its first passage."""
        articles: dict[str, Passage] = {}
        for _, passage in found:
            articles.setdefault(_article(passage), passage)
        return dict(list(articles.items())[: self.config.articles])

    def _ordered(self, found: Candidates, probability: Mapping[str, float]) -> list[Hit]:
        likeliest = sorted(probability, key=lambda article: -probability[article])
        kept = set(likeliest[: self.config.keep])
        if self.config.keep is not None:
            found = [(hit, passage) for hit, passage in found if _article(passage) in kept]
        scores = [probability.get(_article(passage), 0.0) for _, passage in found]
        return rescored([hit for hit, _ in found], scores)


def _article(passage: Passage) -> str:
    return (passage.article_names or (passage.passage_id,))[0]


def _name(passage: Passage) -> str:
    return passage.title or _article(passage)


def _softmax(scores: Sequence[float]) -> list[float]:
    best = max(scores, default=0.0)
    if math.isinf(best):  # no name is possible
        return [1 / len(scores)] * len(scores)
    shares = [math.exp(score - best) for score in scores]
    return [share / math.fsum(shares) for share in shares]
