"""Reranking by a reader's probability of "yes" given question, image and one passage."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from ravqa.answering.prompt import PromptTemplate
from ravqa.core.factory import part_config
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import Part, TemplateName, fingerprint
from ravqa.readers import READERS
from ravqa.readers.base import Reader
from ravqa.rerankers.base import Candidates, Reranker, rescored_each
from ravqa.rerankers.yes_no import YesNo, YesNoConfig, probability

_WHY = "the reranker vlm"
_LONG = re.compile(r"longer than|too long|memory")


class VLMReranker(Reranker):
    """Asks a reader about each of the first passages; see `ravqa.rerankers.yes_no`.

    The reader sees the question's image, if it supports images; the prompt has its description.

    Attributes:
        truncated: how many of the scored passages were cut.
        neutralised: how many control tokens in the prompts' values became plain text.
    """

    class Config(YesNoConfig):
        """Options, beyond those of how the reader is asked.

        Attributes:
            reader: the reader to ask; None for the pipeline's own.
            prompt: a template in `prompts/`, or a file; it is given one passage.
            depth: number of hits that are scored.
            score: the new score: the probability of yes, or its log-odds. The order is the same,
                but filters and decision rules use the scores.
            max_words: most words of a passage, beyond which it is cut; None for no limit.
        """

        reader: Part | None = None
        prompt: TemplateName = "rerank-yes-no"
        depth: int = Field(default=20, ge=1)
        score: Literal["probability", "log-odds"] = "probability"
        max_words: int | None = Field(default=400, ge=1)

        @property
        def scored_hits(self) -> int:
            """Return the depth."""
            return self.depth

        @property
        def asks_reader(self) -> bool:
            """Return True: it always asks a reader."""
            return True

        @property
        def reader_part(self) -> Part | None:
            """Return the reader that is asked; None for the pipeline's own."""
            return self.reader

        @model_validator(mode="after")
        def _check_parts(self) -> Self:
            if self.reader is not None:
                part_config(READERS, self.reader, "vlm.reader")
            PromptTemplate.load(self.prompt)
            return self

    reader: Reader

    def __init__(self, config: Config, reader: Reader):
        """Load the prompt.

        Raises:
            UserError: the prompt does not exist; the reader gives no probabilities.
        """
        self.config = config
        self._template = PromptTemplate.load(config.prompt)
        self.reader = reader
        self._ask = YesNo(config, reader, _WHY)
        self.supports_images = reader.supports_images
        self.stores = self._ask.stores
        self.weights = reader.weights
        self.switched_off = reader.switched_off
        self.truncated = self.neutralised = 0
        self._counting = threading.Lock()
        self.fingerprint = fingerprint(
            "vlm/1",
            self._ask.fingerprint,
            self._template.source,
            config.depth,
            config.score,
            config.max_words,
        )

    def counts(self) -> dict[str, int]:
        """Return how many pairs the reader scored, and what was changed in them."""
        return {
            "scored": self._ask.asked,
            "truncated": self.truncated,
            "neutralised": self.neutralised,
        }

    def rerank(
        self, questions: Sequence[Question], candidates: Sequence[Candidates]
    ) -> list[list[Hit] | Failure]:
        """Return the hits by decreasing probability of yes; those beyond `depth` come last.

        Raises:
            DataError: an image cannot be decoded.
        """
        made = [
            self._template.prompt(question, [self._cut(passage)], reader=self.reader)
            for question, found in zip(questions, candidates, strict=True)
            for _, passage in found[: self.config.depth]
        ]
        with self._counting:
            self.neutralised += sum(count for _, count in made)
        odds = self._ask.log_odds([prompt for prompt, _ in made])
        scores = odds if self.config.score == "log-odds" else [probability(x) for x in odds]
        return rescored_each(candidates, self.config.depth, list(map(_explained, scores)))

    def _cut(self, passage: Passage) -> Passage:
        words = passage.text.split()
        if self.config.max_words is None or len(words) <= self.config.max_words:
            return passage
        with self._counting:
            self.truncated += 1
        return replace(passage, text=" ".join(words[: self.config.max_words]))


def _explained(score: float | Failure) -> float | Failure:
    if not isinstance(score, Failure):
        return score
    hint = " (its setting max_words cuts passages)" if _LONG.search(score.reason) else ""
    return replace(score, reason=f"{_WHY}: {score.reason}{hint}")
