"""What every decision rule is given and gives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ravqa.answering.config import AnsweringConfig, Decision
from ravqa.answering.extract import short_answer, without_reasoning
from ravqa.answering.fitting import Pair
from ravqa.core.errors import PromptError
from ravqa.core.records import Answer, Draft, Question
from ravqa.readers.base import Ability, Generation, Prompt
from ravqa.readers.cached import CachedReader


@dataclass(frozen=True, slots=True)
class Case:
    """One question as a rule is given it.

    Attributes:
        prompts: as many as the rule asked for with `groups`, the best passage first.
        keys: a hash of each prompt.
        passage_ids: per prompt, the passages in it.
        log_priors: per prompt, log p(z | x) of its passage; exp of them sums to 1.
    """

    question: Question
    prompts: tuple[Prompt, ...]
    keys: tuple[str, ...]
    passage_ids: tuple[tuple[str, ...], ...]
    log_priors: tuple[float, ...]


class Rule(ABC):
    """A decision rule.

    Attributes:
        name: as in the settings.
    """

    name: ClassVar[Decision]

    def __init__(self, config: AnsweringConfig):
        self.config = config

    @property
    def needs(self) -> dict[Ability, str]:
        """The abilities that a reader must have, each with what it is needed for."""
        return {}

    @abstractmethod
    def groups(self, found: Sequence[Pair]) -> list[list[Pair]]:
        """The passages of each prompt, from at least one passage, best first."""

    def answer(self, cases: Sequence[Case], reader: CachedReader) -> list[Answer]:
        """One answer per question, in order."""
        generations = iter(reader.generate([p for case in cases for p in case.prompts]))
        drafts = [
            [self._draft(case, i, next(generations)) for i in range(len(case.prompts))]
            for case in cases
        ]
        return self.decide(cases, drafts, reader)

    def decide(
        self, cases: Sequence[Case], drafts: Sequence[list[Draft]], reader: CachedReader
    ) -> list[Answer]:
        """From each question's drafts, one per prompt, to its answer."""
        return [
            self._only(own) if len(own) == 1 else self._decide(case, own)
            for case, own in zip(cases, drafts, strict=True)
        ]

    def single(self, case: Case, generation: Generation) -> Answer:
        """The answer to a question with one prompt, from its generation."""
        return self._only([self._draft(case, 0, generation)])

    @abstractmethod
    def _decide(self, case: Case, drafts: list[Draft]) -> Answer:
        """From several drafts to an answer."""

    def _draft(self, case: Case, i: int, generation: Generation) -> Draft:
        return Draft(
            text=short_answer(generation.text, self.config.extract, case.question.question),
            raw=generation.text,
            log_prob=generation.log_prob,
            tokens=generation.tokens,
            passage_ids=case.passage_ids[i],
            prompt_hash=case.keys[i],
        )

    def _only(self, drafts: list[Draft]) -> Answer:
        return self._chosen(0, drafts, drafts[0].log_prob)

    def _chosen(self, best: int, drafts: list[Draft], log_prob: float | None = None) -> Answer:
        """The answer of the best draft.

        Raises:
            PromptError: it has no word, or none beside its reasoning.
        """
        draft = drafts[best]
        if not draft.raw.strip():
            raise PromptError("the model ended its answer before the first word")
        if self.config.extract.reasoning and not without_reasoning(draft.raw):
            raise PromptError(
                "the model's generation is reasoning without an answer: raise "
                "reader.max_new_tokens if it was cut short"
            )
        return Answer(draft.text, drafts, self.name, raw=draft.raw, log_prob=log_prob)


class PerPassage(Rule):
    """A rule that reads each passage in a prompt of its own."""

    def groups(self, found: Sequence[Pair]) -> list[list[Pair]]:
        """One passage a prompt; the empty passage, if it competes, comes last."""
        return [[pair] for pair in found] + ([[]] if self.config.empty_passage else [])

    @property
    def compares(self) -> bool:
        """There can be more than one prompt."""
        return self.config.passages > 1 or self.config.empty_passage


def known(draft: Draft) -> float:
    """The draft's log-probability.

    Raises:
        PromptError: the reader gave none, as some servers do where nothing was generated.
    """
    if draft.log_prob is None:
        raise PromptError("the reader gave a generation without its log-probability")
    return draft.log_prob


def first_best(scores: Sequence[float]) -> int:
    """Position of the largest score; of equal ones, the first: the better passage."""
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def scored(
    drafts: Sequence[Draft], scores: Sequence[float], log_priors: Sequence[float]
) -> list[Draft]:
    """The drafts with what the rule compared, and with their passages' priors."""
    return [
        replace(draft, score=score, prior=math.exp(log_prior))
        for draft, score, log_prior in zip(drafts, scores, log_priors, strict=True)
    ]
