"""The contract of decision rules."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import Field

from ravqa.answering.choices import choice_of
from ravqa.answering.config import AnsweringConfig
from ravqa.answering.extract import is_shortened, short_answer
from ravqa.answering.fitting import Pair
from ravqa.answering.priors import Prior, log_priors
from ravqa.core.errors import PromptError
from ravqa.core.marks import is_no_answer, split_thinking
from ravqa.core.outcomes import Failure, first_failure
from ravqa.core.records import Answer, Draft, Question
from ravqa.core.texts import is_wordless
from ravqa.readers.base import Abilities, Generation, Prompt, Wordless
from ravqa.readers.cached import CachedReader

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Case:
    """A rule's input for one question.

    Attributes:
        prompts: one per group that `groups` returned, the best passage first.
        keys: a hash of each prompt.
        passage_ids: per prompt, the ids of its passages.
        log_priors: per prompt, log p(z | x) of its passage; their exponentials sum to 1.
    """

    question: Question
    prompts: tuple[Prompt, ...]
    keys: tuple[str, ...]
    passage_ids: tuple[tuple[str, ...], ...]
    log_priors: tuple[float, ...]


class DecisionRule(ABC):
    """Turns a reader's answers about several passages into one answer.

    `groups` distributes the passages among prompts, the reader completes the prompts, and `decide`
    chooses among several generations. A rule that uses the reader in another way overrides
    `answer`.

    Attributes:
        needs_choices: whether the rule can answer only questions with choices.
        thread_safe: whether several threads may call the rule at the same time; a rule that keeps
            nothing from one question to the next is.
    """

    needs_choices: ClassVar[bool] = False
    thread_safe: ClassVar[bool] = True

    class Config(AnsweringConfig):
        """Options: those of answering; a rule may add its own."""

    config: Config
    _told = False  # that a generation was shortened

    def __init__(self, config: Config):
        """Store the rule's validated options."""
        self.config = config

    def problem(self, reader: Abilities) -> str:
        """Return what the rule needs and the reader does not give; blank if nothing is missing.

        The text continues "answering.decision NAME ...", for instance "compares
        log-probabilities".
        """
        return ""

    @property
    def most_passages(self) -> int:
        """Most passages in one prompt."""
        return self.config.passages

    @property
    def chooses(self) -> bool:
        """Whether a question can have several prompts, so that answers cannot be streamed."""
        return True

    @property
    def asks_once(self) -> bool:
        """Whether `answer` asks the reader in one call: nothing depends on what it replies."""
        own = type(self)
        return own.answer is DecisionRule.answer and own.drafts is DecisionRule.drafts

    @abstractmethod
    def groups(self, found: Sequence[Pair]) -> list[list[Pair]]:
        """Return the passages of each prompt.

        Args:
            found: the question's passages, at least one, best first.
        """

    @abstractmethod
    def decide(self, case: Case, drafts: list[Draft]) -> Answer:
        """Return the answer to a question from its drafts: one per prompt, at least two.

        Raises:
            PromptError: the question has no answer.
        """

    def log_priors(self, scores: Sequence[tuple[float, float] | None]) -> list[float]:
        """Return log p(z | x) of each prompt's passage: equal ones, unless the rule weighs them.

        Args:
            scores: per prompt, its first passage's score and retrieval score; None without a
                passage.
        """
        return log_priors([None] * len(scores), "uniform", 1.0)

    def answer(self, cases: Sequence[Case], reader: CachedReader) -> list[Answer | Failure]:
        """Return one answer per question, in order.

        A question fails when one of its prompts does.
        """
        return [
            drafts if isinstance(drafts, Failure) else self.decided(case, drafts)
            for case, drafts in zip(cases, self.drafts(cases, reader), strict=True)
        ]

    def drafts(self, cases: Sequence[Case], reader: CachedReader) -> list[list[Draft] | Failure]:
        """Return the reader's generations for each question's prompts, in one call."""
        made = iter(reader.generate([p for case in cases for p in case.prompts]))
        out: list[list[Draft] | Failure] = []
        for case in cases:
            outcomes = [next(made) for _ in case.prompts]
            generations = [o.generation if isinstance(o, Wordless) else o for o in outcomes]
            drafts = [
                self.draft(case, i, generation)
                for i, generation in enumerate(generations)
                if not isinstance(generation, Failure)
            ]
            out.append(first_failure(generations) or drafts)
        return out

    def decided(self, case: Case, drafts: list[Draft]) -> Answer | Failure:
        """Return the answer from a question's drafts, or why it has none."""
        try:
            return self.only(drafts) if len(drafts) == 1 else self.decide(case, drafts)
        except PromptError as e:
            return Failure.of(e)

    def single(self, case: Case, generation: Generation) -> Answer:
        """Return the answer to a question with one prompt, from its generation.

        Raises:
            PromptError: the generation has no answer.
        """
        return self.only([self.draft(case, 0, generation)])

    def draft(self, case: Case, i: int, generation: Generation) -> Draft:
        """Return the generation for a question's prompt `i`, with the short answer extracted.

        For a question with choices, the answer is the choice that the generation gives, if any.
        """
        if not self._told and is_shortened(generation.text, self.config.extract):
            self._told = True
            _log.warning(
                "a generation has %d characters: only its beginning and end are searched for the "
                "answer",
                len(generation.text),
            )
        short = short_answer(generation.text, self.config.extract, case.question.question)
        choices = case.question.choices
        choice = choice_of(generation.text, short, choices, self.config.choices)
        return Draft(
            text=short if choice is None else choice,
            raw=generation.text,
            log_prob=generation.log_prob,
            tokens=generation.tokens,
            thinking=generation.thinking,
            passage_ids=case.passage_ids[i],
            prompt_hash=case.keys[i],
        )

    def only(self, drafts: list[Draft]) -> Answer:
        """Return the answer of a question's only draft.

        Raises:
            PromptError: as `chosen`.
        """
        return self.chosen(0, drafts, drafts[0].log_prob)

    def chosen(self, best: int, drafts: list[Draft], log_prob: float | None = None) -> Answer:
        """Return the answer of the draft at position `best`.

        Args:
            best: the position.
            drafts: all of them, in the order of the prompts.
            log_prob: log-probability of the answer under the rule, if it has one.

        Raises:
            PromptError: the draft has no word, or none besides its reasoning.
        """
        draft = drafts[best]
        rules, said = self.config.extract, draft.raw
        if rules.reasoning and not is_wordless(said):
            said = split_thinking(said).answer
            if is_wordless(said):
                raise PromptError(
                    "the model's output is reasoning without an answer: raise "
                    "reader.max_new_tokens if it was cut short"
                )
        if is_no_answer(said) if rules.next_example else is_wordless(said):
            raise PromptError("the model ended its answer before the first word")
        return Answer(draft.text, drafts, self.config.decision, raw=draft.raw, log_prob=log_prob)


class PerPassage(DecisionRule):
    """Base of rules that read each passage in a separate prompt."""

    class Config(DecisionRule.Config):
        """Options.

        Attributes:
            empty_passage: add a prompt without a passage, which competes with the others; its score
                is the mean of the passages' scores.
        """

        empty_passage: bool = False

    config: Config

    def groups(self, found: Sequence[Pair]) -> list[list[Pair]]:
        """Return one passage per prompt; the prompt without a passage, if any, comes last."""
        return [[pair] for pair in found] + ([[]] if self.config.empty_passage else [])

    @property
    def most_passages(self) -> int:
        """Return 1."""
        return 1

    @property
    def chooses(self) -> bool:
        """Whether there can be more than one prompt."""
        return self.config.passages > 1 or self.config.empty_passage


class WeighsPassages(PerPassage):
    """Base of rules that weigh each passage by its prior p(z | x)."""

    class Config(PerPassage.Config):
        """Options.

        Attributes:
            prior: p(z | x): softmax of the passages' scores ("scores": a reranker's, if one gave
                them), of the retriever's scores ("retrieval"), or equal ("uniform").
            temperature: T of that softmax; a higher one makes the passages more equal.
        """

        prior: Prior = "scores"
        temperature: float = Field(default=1.0, gt=0)

    config: Config

    def log_priors(self, scores: Sequence[tuple[float, float] | None]) -> list[float]:
        """Return log p(z | x) of each prompt's passage, by `ravqa.answering.priors`."""
        which = int(self.config.prior == "retrieval")
        own = [None if pair is None else pair[which] for pair in scores]
        return log_priors(own, self.config.prior, self.config.temperature)


def known(draft: Draft) -> float:
    """Return the draft's log-probability.

    Raises:
        PromptError: the reader gave none, as some servers do if nothing was generated.
    """
    if draft.log_prob is None:
        raise PromptError("the reader returned a generation without its log-probability")
    return draft.log_prob


def first_best(scores: Sequence[float]) -> int:
    """Return the position of the largest score; ties go to the first, the better passage."""
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def scored(
    drafts: Sequence[Draft], scores: Sequence[float], log_priors: Sequence[float]
) -> list[Draft]:
    """Return the drafts with the values that the rule compared, and their passages' priors."""
    return [
        replace(draft, score=score, prior=math.exp(log_prior))
        for draft, score, log_prior in zip(drafts, scores, log_priors, strict=True)
    ]
