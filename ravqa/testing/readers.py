"""The conformance suite of readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ravqa.core.control_tokens import ControlTokens
from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure
from ravqa.readers.base import Generation, Prompt, Reader
from ravqa.readers.cached import CachedReader
from ravqa.testing.asserting import (
    conformance,
    picture,
    refused,
    require,
    require_names,
    require_thread_safe,
)

_TEXTS = (
    "Passage: Koalas eat the leaves of eucalyptus trees.\nQuestion: What do they eat?\nAnswer:",
    "Passage: A lighthouse of white stone guards the harbour, as it has done since 1856.\n"
    "Question: What guards the harbour?\nAnswer:",
    "Passage: Otters eat fish.\nQuestion: What do they eat?\nAnswer:",
)
_ANSWERS = ("leaves", "a lighthouse", "leaves")
_FLAGS = (
    "deterministic",
    "supports_images",
    "gives_log_probs",
    "scores_answers",
    "gives_next_token_logprobs",
    "counts_tokens",
    "streams",
)


@conformance(Reader)
def check_reader(
    reader: Reader, prompts: Sequence[Prompt] | None = None, *, atol: float = 1e-3
) -> None:
    """Check a reader: it completes a few prompts and does what its attributes declare.

    Args:
        reader: the reader, built.
        prompts: at least two prompts that it can complete; None for three about a passage each,
            with images if it supports them.
        atol: how far a log-probability may be from that of the same prompt in another batch.

    Raises:
        AssertionError: the reader breaks the contract of `ravqa.readers.base.Reader`.
    """
    name = type(reader).__name__
    _check_attributes(reader)
    fingerprint = reader.fingerprint
    asked = list(prompts) if prompts is not None else _prompts(reader)
    checked = CachedReader(reader, keep=False)  # it checks types and numbers of results
    made = [_answered(name, outcome) for outcome in checked.generate(asked)]
    require(list(reader.generate([])) == [], f"{name}.generate returns [] for no prompts")
    if reader.gives_log_probs:
        for one in made:
            require(
                one.log_prob is not None and one.log_prob <= 1e-6 and one.tokens > 0,
                f"{name} sets `gives_log_probs`: a generation has a log-probability of at most 0 "
                f"and the number of its tokens, got {one}",
            )
    if reader.deterministic:
        again = [_answered(name, checked.generate([prompt])[0]) for prompt in asked]
        require(
            all(_same(a, b, atol) for a, b in zip(made, again, strict=True)),
            f"{name} sets `deterministic`: it generates the same whatever is asked with a prompt, "
            f"in order, got {made} together and {again} alone",
        )
    _check_images(reader, checked, asked)
    _check_scores(reader, checked, asked, atol)
    _check_next_tokens(reader, checked, asked, atol)
    _check_counts(reader, checked, asked)
    _check_stream(reader, asked, made)
    _check_threads(reader, asked, atol)
    require(isinstance(reader.problem(), str), f"{name}.problem returns a text")
    require(reader.fingerprint == fingerprint, f"{name}.fingerprint does not change by use")


def _prompts(reader: Reader) -> list[Prompt]:
    shades = (10, 130, 240)
    return [
        Prompt(text, picture(64, 48, shade) if reader.supports_images else None)
        for text, shade in zip(_TEXTS, shades, strict=True)
    ]


def _check_attributes(reader: Reader) -> None:
    name = type(reader).__name__
    require_names(reader, "fingerprint", "weights")
    for flag in _FLAGS:
        value = getattr(reader, flag)
        require(isinstance(value, bool), f"{name}.{flag} is True or False, got {value!r}")
    require(
        isinstance(reader.control_tokens, ControlTokens),
        f"{name}.control_tokens are ControlTokens (none, or `COMMON`, or those of a tokenizer)",
    )
    limits = {
        "context": reader.context,
        "max_images": reader.max_images,
        "workers": reader.workers,
    }
    for attribute, limit in limits.items():
        allowed = limit is None and attribute != "workers"
        good = allowed or (isinstance(limit, int) and limit > 0)
        require(good, f"{name}.{attribute} is a number from 1, got {limit!r}")


def _answered(name: str, outcome: Generation | Failure) -> Generation:
    if isinstance(outcome, Failure):
        raise AssertionError(f"{name}.generate completes the suite's prompts, got {outcome}")
    return outcome


def _same(one: Generation, other: Generation, atol: float) -> bool:
    if (one.log_prob is None) != (other.log_prob is None):
        return False
    return one.text == other.text and math.isclose(
        one.log_prob or 0, other.log_prob or 0, rel_tol=0, abs_tol=atol
    )


def _check_images(reader: Reader, checked: CachedReader, prompts: Sequence[Prompt]) -> None:
    if not reader.supports_images:
        return
    name = type(reader).__name__
    several = reader.max_images is None or reader.max_images > 1
    first = prompts[0]
    broken = [replace(first, image=b"no image")]
    if several:
        further = replace(first, image=picture(64, 48, 10), pictures=(picture(48, 64, 240),))
        _answered(name, checked.generate([further])[0])
        broken.append(replace(further, pictures=(b"no image",)))
    for prompt in broken:
        refused(
            UserError,
            partial(reader.generate, [prompt]),
            f"{name} supports images{' and `pictures` (`max_images`)' if several else ''}: "
            "generate raises DataError for one that cannot be decoded (`open_image` does)",
        )


def _check_scores(
    reader: Reader, checked: CachedReader, prompts: Sequence[Prompt], atol: float
) -> None:
    name = type(reader).__name__
    answers = [_ANSWERS[i % len(_ANSWERS)] for i in range(len(prompts))]
    if not reader.scores_answers:
        sentence = f"{name} does not set `scores_answers`: score raises UserError"
        refused(UserError, lambda: reader.score(prompts, answers), sentence)
        return
    found: list[Any] = checked.score(prompts, answers)
    for score in found:
        require(
            not isinstance(score, Failure) and score <= 1e-6,
            f"{name}.score returns log-probabilities of at most 0, got {score}",
        )
    alone: list[Any] = [
        checked.score([p], [answer])[0] for p, answer in zip(prompts, answers, strict=True)
    ]
    require(
        np.allclose(found, alone, rtol=0, atol=atol),
        f"{name}.score gives an answer the same score whatever is scored with it, in order: "
        f"{found} together, {alone} alone",
    )


def _check_next_tokens(
    reader: Reader, checked: CachedReader, prompts: Sequence[Prompt], atol: float
) -> None:
    name = type(reader).__name__
    if not reader.gives_next_token_logprobs:
        refused(
            UserError,
            lambda: reader.next_token_logprobs(prompts, [()] * len(prompts)),
            f"{name} does not set `gives_next_token_logprobs`: next_token_logprobs raises "
            "UserError",
        )
        return
    require(
        reader.max_new_tokens > 0 and reader.ends,
        f"{name} gives next-token probabilities, and so sets `max_new_tokens` and `ends`",
    )
    rows: list[Any] = checked.next_token_logprobs(prompts, [()] * len(prompts))
    for row in rows:
        total = float(np.exp(np.asarray(row, np.float64)).sum())
        require(
            row.dtype == np.float32 and abs(total - 1) < 0.01,
            f"{name}.next_token_logprobs returns float32 whose exponentials sum to 1, got "
            f"{row.dtype} and {total}",
        )
    first = [[int(row.argmax())] for row in rows]
    stepped: list[Any] = checked.next_token_logprobs(prompts, first)
    order = range(len(prompts))[::-1]
    alone: list[Any] = [checked.next_token_logprobs([prompts[i]], [first[i]])[0] for i in order]
    require(
        all(np.allclose(stepped[i], row, atol=atol) for i, row in zip(order, alone, strict=True)),
        f"{name}.next_token_logprobs gives a prompt and prefix the same row whatever was asked "
        "before or with it",
    )
    require(
        isinstance(reader.decode(first[0]), str) and reader.decode(sorted(reader.ends)) == "",
        f"{name}.decode returns a text without the end marks",
    )


def _check_counts(reader: Reader, checked: CachedReader, prompts: Sequence[Prompt]) -> None:
    name = type(reader).__name__
    if not reader.counts_tokens:
        sentence = f"{name} does not set `counts_tokens`: count_tokens raises UserError"
        refused(UserError, lambda: reader.count_tokens(prompts), sentence)
        return
    twice = [replace(prompt, text=f"{prompt.text} {prompt.text}") for prompt in prompts]
    found: list[Any] = checked.count_tokens([*prompts, *twice])
    pairs = list(zip(found[: len(prompts)], found[len(prompts) :], strict=True))
    require(
        all(isinstance(n, int) and 0 < n < m for n, m in pairs),
        f"{name}.count_tokens returns numbers from 1, more of a longer text, got {found}",
    )


def _check_stream(reader: Reader, prompts: Sequence[Prompt], made: Sequence[Generation]) -> None:
    name = type(reader).__name__
    if not reader.streams:
        sentence = f"{name} does not set `streams`: stream raises UserError"
        refused(UserError, lambda: list(reader.stream(prompts[0])), sentence)
        return
    for prompt, whole in zip(prompts, made, strict=True):
        streamed = "".join(reader.stream(prompt))
        require(
            not reader.deterministic or streamed == whole.text,
            f"{name}.stream yields the generation in pieces: {whole.text!r}, got {streamed!r}",
        )


def _check_threads(reader: Reader, prompts: Sequence[Prompt], atol: float) -> None:
    name = type(reader).__name__

    def alike(some: list[Any], others: list[Any]) -> bool:
        pairs = [
            (_answered(name, a), _answered(name, b)) for a, b in zip(some, others, strict=True)
        ]
        return not reader.deterministic or all(_same(a, b, atol) for a, b in pairs)

    parts = [[prompt] for prompt in prompts] + [list(prompts), list(prompts[::-1])]
    require_thread_safe(reader, "generate", [partial(reader.generate, p) for p in parts], alike)
    if reader.scores_answers:

        def close(some: list[Any], others: list[Any]) -> bool:
            return bool(np.allclose(some, others, rtol=0, atol=atol))

        answers = _ANSWERS[:1]
        calls = [partial(reader.score, part, answers * len(part)) for part in parts]
        require_thread_safe(reader, "score", calls, close)
