"""Decoding of one answer from all passages at once: the exact token-level mixture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from ravqa.answering.rules.base import Case, WeighsPassages
from ravqa.core.errors import PromptError
from ravqa.core.outcomes import Failure, first_failure
from ravqa.core.records import Answer, Draft
from ravqa.core.settings import fingerprint
from ravqa.core.texts import is_wordless
from ravqa.readers.base import Abilities, Generation, Prompt, Reader
from ravqa.readers.cached import CachedReader


@dataclass(frozen=True, slots=True)
class Mixed:
    """The sequence decoded for one question.

    Attributes:
        text: the generation, without the end mark.
        log_prob: log-probability of the generated tokens under the mixture, end mark included.
        tokens: number of those tokens.
        likelihoods: per passage log p(y | x, z_k); None for a pruned passage.
        posteriors: per passage p(z_k | x, y); 0 for a pruned passage.
    """

    text: str
    log_prob: float
    tokens: int
    likelihoods: tuple[float | None, ...]
    posteriors: tuple[float, ...]


class Mixture(WeighsPassages):
    """Greedy decoding of one sequence from the mixture of the K passages' distributions:

        y_i = argmax_v  sum_k w_k,i p(v | x, z_k, y_<i)
        w_k,1 = p(z_k | x)
        w_k,i+1 = w_k,i p(y_i | x, z_k, y_<i) / sum_j w_j,i p(y_i | x, z_j, y_<i)

    w_k,i is the posterior p(z_k | x, y_<i), so that by the chain rule the product of the steps'
    probabilities is exactly sum_k p(z_k | x) p(y | x, z_k): the sequence model of RAG (Lewis et al.
    2020, arXiv 2005.11401), decoded token by token as in BERAG (Chen, Mei, Yang and Byrne 2026,
    arXiv 2604.22678; EriChen0615/BERAG, berag_inference_engine.py). `joint_max` and `marginal`
    choose among what single passages say; here every token is chosen by all passages. With one
    passage it is the reader's own greedy generation.

    With `prune`, each step keeps the fewest passages whose posteriors sum to at least that share,
    and renormalises their posteriors; the others are dropped for good.
    """

    class Config(WeighsPassages.Config):
        """Options.

        Attributes:
            prune: share of the posterior that the kept passages must hold; None keeps all.
            batch_size: most prompts decoded at a time; a question's prompts stay together.
        """

        prune: float | None = Field(default=None, gt=0, le=1)
        batch_size: int = Field(default=16, ge=1)

    config: Config

    def problem(self, reader: Abilities) -> str:
        """Require next-token distributions."""
        return "" if reader.gives_next_token_logprobs else "decodes from next-token distributions"

    def answer(self, cases: Sequence[Case], reader: CachedReader) -> list[Answer | Failure]:
        """Return one answer per question, in order."""
        several = [case for case in cases if len(case.prompts) > 1]
        keys = [
            fingerprint("mixture/1", case.keys, case.log_priors, self.config.prune)
            for case in several
        ]
        mixed = reader.recall(
            keys, lambda rows: self._make([several[row] for row in rows], reader), _out, _back
        )
        # With one passage, the mixture is the reader's own generation.
        plain = iter(super().answer([case for case in cases if len(case.prompts) == 1], reader))
        mixtures = iter(map(self._answer, several, mixed))
        return [next(plain if len(case.prompts) == 1 else mixtures) for case in cases]

    def decide(self, case: Case, drafts: list[Draft]) -> Answer:
        """Never called: several passages are decoded together."""
        raise AssertionError("several passages are decoded together")

    def _make(
        self, cases: Sequence[Case], reader: CachedReader
    ) -> Iterator[tuple[int, Mixed | Failure]]:
        """Decode whole questions, batch by batch."""
        for batch in self._batches(cases):
            rows = [(cases[i].prompts, cases[i].log_priors) for i in batch]
            yield from zip(batch, decode(rows, reader, prune=self.config.prune), strict=True)

    def _batches(self, cases: Sequence[Case]) -> Iterator[list[int]]:
        batch: list[int] = []
        rows = 0
        for i, case in enumerate(cases):
            if batch and rows + len(case.prompts) > self.config.batch_size:
                yield batch
                batch, rows = [], 0
            batch.append(i)
            rows += len(case.prompts)
        if batch:
            yield batch

    def _answer(self, case: Case, mixed: Mixed | Failure) -> Answer | Failure:
        if isinstance(mixed, Failure):
            return mixed
        whole = Generation(mixed.text, mixed.log_prob, mixed.tokens)
        drafts = [
            replace(
                self.draft(case, k, whole),
                log_prob=mixed.likelihoods[k],
                score=None if likelihood is None else log_prior + likelihood,
                prior=math.exp(log_prior),
                posterior=mixed.posteriors[k],
            )
            for k, (log_prior, likelihood) in enumerate(
                zip(case.log_priors, mixed.likelihoods, strict=True)
            )
        ]
        try:
            return replace(self.chosen(0, drafts, log_prob=mixed.log_prob), joint=True)
        except PromptError as e:
            return Failure.of(e)


def decode(
    questions: Sequence[tuple[Sequence[Prompt], Sequence[float]]],
    reader: Reader,
    *,
    prune: float | None = None,
) -> list[Mixed | Failure]:
    """Decode one sequence per question, all questions in step.

    Args:
        questions: per question its prompts, one per passage, and log p(z_k | x) of each.
        reader: gives the next-token distributions; a question fails if one of its prompts does.
        prune: see `Mixture`.
    """
    states = [_State(prompts, log_priors) for prompts, log_priors in questions]
    for _ in range(reader.max_new_tokens):
        going = [state for state in states if not state.ended and state.failure is None]
        if not going:
            break
        if prune is not None:
            for state in going:
                state.prune(prune)
        logs = reader.next_token_logprobs(
            [state.prompts[k] for state in going for k in state.members],
            [state.tokens for state in going for _ in state.members],
        )
        start = 0
        for state in going:
            stop = start + len(state.members)
            rows = logs[start:stop]
            state.failure = first_failure(rows)
            if state.failure is None:
                state.step(rows, reader.ends)
            start = stop
    return [state.failure or state.result(reader) for state in states]


@dataclass(slots=True)
class _State:
    """State of decoding one question: the tokens so far, and the passages' posteriors."""

    prompts: Sequence[Prompt]
    log_priors: Sequence[float]
    members: list[int] = field(init=False)  # passages that are not pruned
    weights: list[float] = field(init=False)  # log posterior of each member
    likelihoods: dict[int, float] = field(init=False)
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    ended: bool = False
    failure: Failure | None = None

    def __post_init__(self) -> None:
        self.members = list(range(len(self.prompts)))
        self.weights = list(self.log_priors)
        self.likelihoods = dict.fromkeys(self.members, 0.0)

    def step(self, logs: Any, ends: frozenset[int]) -> None:
        """Append the most probable token under the mixture.

        Args:
            logs: the members' log-probabilities, float32 [members, vocabulary].
            ends: tokens that end the sequence.
        """
        import numpy as np

        weights = np.asarray(self.weights)[:, None]
        mixture = np.exp(np.asarray(logs, np.float64) + weights).sum(axis=0)
        token = int(mixture.argmax())
        total = math.log(mixture[token])
        for place, k in enumerate(self.members):
            own = float(logs[place][token])
            self.likelihoods[k] += own
            self.weights[place] += own - total
        self.tokens.append(token)
        self.log_prob += total
        self.ended = token in ends

    def prune(self, share: float) -> None:
        """Keep the fewest members that hold `share` of the posterior."""
        order = sorted(range(len(self.members)), key=lambda place: -self.weights[place])
        held = 0.0
        kept: list[int] = []
        for place in order:
            kept.append(place)
            held += math.exp(self.weights[place])
            if held >= share:
                break
        kept.sort()
        self.members = [self.members[place] for place in kept]
        self.weights = [self.weights[place] - math.log(held) for place in kept]

    def result(self, reader: Reader) -> Mixed:
        """Return what has been decoded."""
        likelihoods: list[float | None] = [None] * len(self.prompts)
        posteriors = [0.0] * len(self.prompts)
        for k, weight in zip(self.members, self.weights, strict=True):
            likelihoods[k] = self.likelihoods[k]
            posteriors[k] = math.exp(weight)
        return Mixed(
            reader.decode(self.tokens),
            self.log_prob,
            len(self.tokens),
            tuple(likelihoods),
            tuple(posteriors),
        )


def _out(mixed: Mixed) -> list[Any] | None:
    if is_wordless(mixed.text):
        return None
    return [mixed.text, mixed.log_prob, mixed.tokens, mixed.likelihoods, mixed.posteriors]


def _back(value: list[Any]) -> Mixed | None:
    text, log_prob, tokens, likelihoods, posteriors = value
    if is_wordless(text):
        return None
    return Mixed(text, log_prob, tokens, tuple(likelihoods), tuple(posteriors))
