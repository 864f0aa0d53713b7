"""The conformance suite of decision rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ravqa.answering.rules.base import Case, DecisionRule
from ravqa.core.outcomes import Failure
from ravqa.core.records import Answer, Hit, Passage, Question
from ravqa.readers.base import Generation, Prompt, Reader
from ravqa.readers.cached import CachedReader
from ravqa.retrievers.base import to_hits
from ravqa.testing.asserting import conformance, require, require_thread_safe
from ravqa.testing.retrievers import small_corpus, small_questions

_WORDS = ("leaves", "lighthouse", "rivers", "twigs", "fish")
_END = len(_WORDS)
_REFUSED = "this prompt is refused"


class SmallReader(Reader):
    """A reader whose generations are one word out of five, and that gives all probabilities.

    A word of the prompt is as probable as the exponential of how often it occurs there.
    """

    fingerprint = "small/1"
    weights = "none"
    deterministic = True
    max_new_tokens = 3
    ends = frozenset({_END})
    gives_log_probs = scores_answers = gives_next_token_logprobs = True

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation | Failure]:
        """Return the most probable word of each prompt."""
        return [self._generation(prompt) for prompt in prompts]

    def _generation(self, prompt: Prompt) -> Generation | Failure:
        if _REFUSED in prompt.text:
            return Failure(_REFUSED)
        row = self._row(prompt, ())
        best = int(row.argmax())
        return Generation(_WORDS[best], float(row[best]), 2)

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | Failure]:
        """Return the log-probability of each answer; minus infinity for any but the five words."""
        return [
            Failure(_REFUSED)
            if _REFUSED in prompt.text
            else float(self._row(prompt, ())[_WORDS.index(answer)])
            if answer in _WORDS
            else -math.inf
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def next_token_logprobs(
        self, prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]]
    ) -> list[np.ndarray | Failure]:
        """Return the distribution over the words and the end mark."""
        return [
            Failure(_REFUSED) if _REFUSED in prompt.text else self._row(prompt, prefix)
            for prompt, prefix in zip(prompts, prefixes, strict=True)
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the words."""
        return " ".join(_WORDS[token] for token in tokens if token != _END)

    def _row(self, prompt: Prompt, prefix: Sequence[int]) -> np.ndarray:
        row = np.full(_END + 1, -np.inf, np.float32)
        if prefix:
            row[_END] = 0  # after one word comes the end
            return row
        counts = [prompt.text.lower().count(word) for word in _WORDS]
        row[:_END] = np.asarray(counts) - math.log(sum(map(math.exp, counts)))
        return row


class _Plain(SmallReader):
    """The same reader, giving text alone."""

    gives_log_probs = scores_answers = gives_next_token_logprobs = False

    def _generation(self, prompt: Prompt) -> Generation | Failure:
        made = super()._generation(prompt)
        return made if isinstance(made, Failure) else Generation(made.text)


class _Counting(CachedReader):
    """Counts how often it is asked."""

    calls = 0

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation | Failure]:
        self.calls += 1
        return super().generate(prompts)

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | Failure]:
        self.calls += 1
        return super().score(prompts, answers)

    def recall(self, *arguments: Any, **options: Any) -> list[Any]:
        self.calls += 1
        return super().recall(*arguments, **options)


@conformance(DecisionRule)
def check_rule(rule: DecisionRule) -> None:
    """Check a decision rule: it answers three questions about up to five passages.

    Args:
        rule: the rule, built; `passages` of its options should be above 1 if it reads several.

    Raises:
        AssertionError: the rule breaks the contract of
            `ravqa.answering.rules.base.DecisionRule`.
    """
    name = type(rule).__name__
    require(
        issubclass(rule.Config, DecisionRule.Config),
        f"{name}.Config is derived from DecisionRule.Config",
    )
    require(isinstance(rule.chooses, bool), f"{name}.chooses is True or False")
    require(isinstance(rule.asks_once, bool), f"{name}.asks_once is True or False")
    for count in (1, 2, rule.config.passages):
        _check_groups(rule, count)
    _check_priors(rule)
    reader = CachedReader(SmallReader(), keep=False)
    problem = rule.problem(reader.abilities)
    require(problem == "", f"{name} takes a reader that gives all probabilities, got {problem!r}")
    plain = CachedReader(_Plain(), keep=False)
    problem = rule.problem(plain.abilities)
    require(isinstance(problem, str), f"{name}.problem returns a text, got {problem!r}")
    readers = [reader] if problem else [reader, plain]
    for able in readers:
        _check_answers(rule, able)


def _found(turn: int, count: int) -> list[tuple[Hit, Passage]]:
    passages = list(small_corpus().values())
    passages = (passages[turn:] + passages[:turn])[:count]
    hits = to_hits([(p.passage_id, 2.0 - i / 2) for i, p in enumerate(passages)])
    return list(zip(hits, passages, strict=True))


def _check_groups(rule: DecisionRule, count: int) -> None:
    name, found = type(rule).__name__, _found(0, count)
    groups = rule.groups(found)
    require(groups, f"{name}.groups returns at least one prompt")
    places = [found.index(pair) if pair in found else -1 for own in groups for pair in own]
    require(-1 not in places, f"{name}.groups puts the passages that were found into the prompts")
    first = [found.index(own[0]) for own in groups if own]
    require(first == sorted(first), f"{name}.groups has the prompt with the best passage first")
    require(
        rule.chooses or len(groups) == 1,
        f"{name}.chooses is False: groups returns one prompt, got {len(groups)}",
    )


def _check_priors(rule: DecisionRule) -> None:
    name = type(rule).__name__
    for scores in ([(2.0, 1.0)], [(2.0, 1.0), (0.5, 3.0), None], [None, None]):
        found = rule.log_priors(scores)
        require(
            len(found) == len(scores) and abs(sum(map(math.exp, found)) - 1) < 1e-6,
            f"{name}.log_priors returns a log-probability per prompt, which sum to 1, got {found}",
        )


def _case(rule: DecisionRule, question: Question, turn: int, count: int) -> Case:
    groups = rule.groups(_found(turn, count)) if count else [[]]
    texts = [
        "\n".join(
            [*(passage.content for _, passage in own), question.question, *_WORDS[: turn + 1]]
        )
        for own in groups
    ]
    hits = [own[0][0] if own else None for own in groups]
    return Case(
        question=question,
        prompts=tuple(map(Prompt, texts)),
        keys=tuple(texts),
        passage_ids=tuple(tuple(hit.passage_id for hit, _ in own) for own in groups),
        log_priors=tuple(
            rule.log_priors([None if hit is None else (hit.score, hit.score) for hit in hits])
        ),
    )


def _check_answers(rule: DecisionRule, reader: CachedReader) -> None:
    name, count = type(rule).__name__, rule.config.passages
    questions = [replace(question, choices=_WORDS) for question in small_questions()]
    cases = [_case(rule, question, i, count) for i, question in enumerate(questions)]
    cases.append(_case(rule, cases[0].question, 0, 0))
    counting = _Counting(reader, keep=False)
    found = rule.answer(cases, counting)
    require(
        not rule.asks_once or counting.calls == 1,
        f"{name} is said to ask once (`asks_once`): answer calls the reader once for all "
        f"questions, got {counting.calls} calls",
    )
    require(len(found) == len(cases), f"{name}.answer returns an answer per question: {found}")
    for case, answer in zip(cases, found, strict=True):
        if not isinstance(answer, Answer):
            raise AssertionError(f"{name}.answer returns an Answer per question, got {answer}")
        require(
            answer.text in _WORDS and len(answer.drafts) == len(case.prompts),
            f"{name}.answer returns an answer of the reader, with a draft per prompt, got {answer}",
        )
    require(
        [rule.answer([case], reader)[0] for case in cases] == list(found),
        f"{name}.answer gives a question the same answer whatever is asked with it, in order",
    )
    parts = [[case] for case in cases] + [cases, cases[::-1]]
    calls = [partial(rule.answer, part, reader) for part in parts]
    require_thread_safe(rule, "answer", calls, lambda some, others: some == others)
    prompts = (*cases[1].prompts[:-1], Prompt(_REFUSED))
    keys = (*cases[1].keys[:-1], _REFUSED)
    refused = replace(cases[1], prompts=prompts, keys=keys)
    mixed = rule.answer([cases[0], refused, cases[2]], reader)
    require(
        isinstance(mixed[1], Failure) and [mixed[0], mixed[2]] == [found[0], found[2]],
        f"{name}.answer returns a Failure for the question with a prompt that failed, and the "
        f"others' answers as they were, got {mixed}",
    )
