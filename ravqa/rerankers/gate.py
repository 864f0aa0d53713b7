"""A gate, which drops a question's passages if they are not good enough or not needed."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from ravqa.answering.prompt import PromptTemplate
from ravqa.core.errors import UserError
from ravqa.core.factory import part_config
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Question
from ravqa.core.settings import Part, TemplateName, fingerprint
from ravqa.readers import READERS
from ravqa.readers.base import Reader
from ravqa.rerankers.base import PassageFilter
from ravqa.rerankers.yes_no import YesNo, YesNoConfig, probability


class Gate(PassageFilter):
    """Keeps passages if a number reaches a limit; else the question is asked without passages.

    With s_1 >= s_2 >= ... the scores of a question's hits, the number is

    - `best`: s_1;
    - `margin`: s_1 - s_n, n being `against`; a question with fewer hits keeps them;
    - `reader`: the probability that a reader says yes to a prompt with question and image, without
      passages: whether external knowledge is needed (see `ravqa.rerankers.yes_no`). It is the
      decision whether to retrieve of mR2AG and ReflectiVA (arXiv 2411.15041, 2411.16863), without
      their training.
    """

    class Config(YesNoConfig):
        """Options; those of how a reader is asked apply only to the rule `reader`.

        Attributes:
            rule: see the class.
            at_least: the limit; for the rule `reader` a probability.
            against: n in the rule `margin`.
            reader: asked by the rule `reader`; None for the pipeline's own.
            prompt: a template in `prompts/`, or a file, for the rule `reader`.
        """

        rule: Literal["best", "margin", "reader"]
        at_least: float = Field(allow_inf_nan=False)
        against: int = Field(default=2, ge=2)
        reader: Part | None = None
        prompt: TemplateName = "gate-needs-knowledge"

        @property
        def asks_reader(self) -> bool:
            """Return whether the rule needs a reader."""
            return self.rule == "reader"

        @property
        def reader_part(self) -> Part | None:
            """Return the reader that is asked; None for the pipeline's own."""
            return self.reader

        @model_validator(mode="after")
        def _check(self) -> Self:
            of_reader = {"reader", "prompt", *YesNoConfig.model_fields}
            idle = self.model_fields_set & (of_reader if not self.asks_reader else {"against"})
            if self.rule == "best":
                idle |= self.model_fields_set & {"against"}
            if idle:
                raise ValueError(f"{', '.join(sorted(idle))}: not used by the rule {self.rule}")
            if self.asks_reader and not 0 <= self.at_least <= 1:
                raise ValueError(f"at_least {self.at_least}: a probability, 0 to 1, is expected")
            if self.reader is not None:
                part_config(READERS, self.reader, "gate.reader")
            if self.asks_reader:
                PromptTemplate.load(self.prompt)
            return self

    def __init__(self, config: Config, reader: Reader | None = None):
        """Load the prompt, if a reader is asked.

        Raises:
            UserError: the prompt does not exist; the reader gives no probabilities.
        """
        self.config = config
        self._ask: YesNo | None = None
        self.reader = reader
        self._neutralised = 0
        self._counting = threading.Lock()
        parts = [config.model_dump(include={"rule", "at_least", "against"})]
        if config.asks_reader:
            if reader is None:
                raise UserError("the gate's rule reader needs a reader")
            self._template = PromptTemplate.load(config.prompt)
            self._ask = YesNo(config, reader, "the gate")
            self.supports_images = reader.supports_images
            self.stores = self._ask.stores
            self.weights = reader.weights
            self.switched_off = reader.switched_off
            parts += [{"asked": self._ask.fingerprint, "prompt": self._template.source}]
        self.fingerprint = fingerprint("gate/1", parts)

    @property
    def thread_safe(self) -> bool:
        """Whether it asks no reader, or one that several threads may call."""
        return self.reader is None or self.reader.thread_safe

    def counts(self) -> dict[str, int]:
        """Return how many questions a reader was asked about, and what was changed in them."""
        if self._ask is None:
            return {"scored": 0}
        return {"scored": self._ask.asked, "neutralised": self._neutralised}

    def keep(
        self, questions: Sequence[Question], rankings: Sequence[Sequence[Hit]]
    ) -> list[list[bool] | Failure]:
        """Return, per question, True for all of its hits or for none.

        Raises:
            DataError: an image cannot be decoded.
        """
        values: list[float | Failure]
        if self._ask is None or self.reader is None:
            values = [self._value([hit.score for hit in hits]) for hits in rankings]
        else:
            made = [
                self._template.prompt(q, [], reader=self.reader)
                for q, hits in zip(questions, rankings, strict=True)
                if hits
            ]
            with self._counting:
                self._neutralised += sum(count for _, count in made)
            odds = iter(self._ask.log_odds([prompt for prompt, _ in made]))
            values = [probability(next(odds)) if hits else 0.0 for hits in rankings]
        return [
            value if isinstance(value, Failure) else [value >= self.config.at_least] * len(hits)
            for hits, value in zip(rankings, values, strict=True)
        ]

    def _value(self, scores: Sequence[float]) -> float:
        best = sorted(scores, reverse=True)
        if self.config.rule == "best":
            return best[0] if best else -math.inf
        other = self.config.against - 1
        return best[0] - best[other] if other < len(best) else math.inf
