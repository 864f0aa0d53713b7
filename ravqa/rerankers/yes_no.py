"""A reader's yes or no to a prompt, as a probability.

With Y and N the words for yes and no, the log-odds are

    log sum_{w in Y} p(w | prompt) - log sum_{w in N} p(w | prompt)

so that the probability p(yes) / (p(yes) + p(no)) is its logistic function: the relevance used by
language-model rerankers (Nogueira et al. 2020, arXiv 2003.06713, with "true" and "false";
EriChen0615/BERAG, src/retrievers.py, with yes and no, for Qwen2-VL). There are two ways to compute
p(w | prompt):

- `next-token`: the probability that the next token is w. Tokens that differ from w only by case and
  white space (except line breaks) count as w.
- `score`: the probability that the generation is exactly w and then ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self, overload

from pydantic import Field, model_validator

from ravqa.answering.priors import log_sum
from ravqa.core.cache import Memo
from ravqa.core.errors import ContractError, UserError
from ravqa.core.outcomes import Failure, first_failure
from ravqa.core.settings import Text, fingerprint
from ravqa.images.decode import image_prints
from ravqa.readers.base import Abilities, Prompt, Reader
from ravqa.readers.cached import CachedReader
from ravqa.rerankers.base import RerankerConfig

Way = Literal["next-token", "score"]
_MOST = 1000.0


class YesNoConfig(RerankerConfig):
    """Options of how a reader is asked.

    Attributes:
        positive: the words for yes.
        negative: the words for no.
        way: how their probabilities are computed; None for next-token if the reader supports it,
            else score.
        batch_size: prompts per call to the reader.
        cache: whether answers are kept on disk.
    """

    positive: tuple[Text, ...] = Field(default=("yes",), min_length=1)
    negative: tuple[Text, ...] = Field(default=("no",), min_length=1)
    way: Way | None = None
    batch_size: int = Field(default=8, ge=1)
    cache: bool = True

    def reader_problem(self, reader: Abilities) -> str:
        """Require probabilities, in the way that is set if there is one."""
        ways = _ways(reader)
        if self._suffices(reader):
            return ""
        if ways:
            return f"asks in the way {self.way}, which this reader does not know: {ways[0]} works"
        keep = [f"set {way} of the reader, or " for way in reader.ways_to(self._suffices)]
        return (
            "asks a reader for probabilities, which this reader does not give: "
            f"{''.join(keep)}choose another reader for it"
        )

    def _suffices(self, reader: Abilities) -> bool:
        ways = _ways(reader)
        return bool(ways) and self.way in (None, *ways)

    @model_validator(mode="after")
    def _check_words(self) -> Self:
        if not all(word.strip() for word in (*self.positive, *self.negative)):
            raise ValueError("positive, negative: a blank word")
        if {_plain(word) for word in self.positive} & {_plain(word) for word in self.negative}:
            raise ValueError("positive, negative: a word is in both")
        return self


def _ways(reader: Abilities) -> list[Way]:
    """Return the ways that a reader knows, the better one first."""
    known: list[tuple[Way, bool]] = [
        ("next-token", reader.gives_next_token_logprobs),
        ("score", reader.scores_answers),
    ]
    return [way for way, works in known if works]


class YesNo:
    """Asks a reader, each question only once.

    Attributes:
        way: how probabilities are computed.
        fingerprint: changes with the reader and every setting that can change an answer.
    """

    def __init__(self, config: YesNoConfig, reader: Reader, why: str):
        """Choose how probabilities are computed.

        Args:
            why: name of the caller, for messages.

        Raises:
            UserError: the reader gives no probabilities, or has no token for a word.
        """
        self._config = config
        self._reader = CachedReader(reader, keep=False)
        self._why = why
        if problem := config.reader_problem(reader.abilities):
            raise UserError(f"{why} {problem}")
        self.way: str = config.way or _ways(reader.abilities)[0]
        self._tokens: tuple[list[int], list[int]] | None = None
        keep = config.cache and reader.deterministic
        self._kept = Memo[float | Failure](
            "reranking" if keep else None, chunk=max(64, config.batch_size), back=float
        )
        self.stores = self._kept.stores
        self.fingerprint = fingerprint(
            "yes-no/1",
            reader.fingerprint,
            self.way,
            sorted(config.positive),
            sorted(config.negative),
        )

    @property
    def asked(self) -> int:
        """Number of prompts that the reader was asked."""
        return self._kept.made

    def log_odds(self, prompts: Sequence[Prompt]) -> list[float | Failure]:
        """Return the log-odds of yes against no for each prompt (natural log).

        Raises:
            DataError: an image cannot be read.
            UserError: a probability is not a number.
        """
        images = image_prints([prompt.image for prompt in prompts])
        keys = [
            fingerprint(self.fingerprint, prompt.text, image, *sorted(prompt.own))
            for prompt, image in zip(prompts, images, strict=True)
        ]
        return self._kept.get(keys, lambda rows: enumerate(self._ask([prompts[i] for i in rows])))

    def _ask(self, prompts: Sequence[Prompt]) -> list[float | Failure]:
        ask = self._by_token if self.way == "next-token" else self._by_score
        size = self._config.batch_size
        try:
            return [
                odds
                for start in range(0, len(prompts), size)
                for odds in ask(prompts[start : start + size])
            ]
        except ContractError as e:  # as when a model overflows in half precision
            raise UserError(f"{self._why}: {e}") from None

    def _by_token(self, prompts: Sequence[Prompt]) -> list[float | Failure]:
        rows = self._reader.next_token_logprobs(prompts, [()] * len(prompts))
        return [row if isinstance(row, Failure) else self._of_row(row) for row in rows]

    def _of_row(self, row: Any) -> float:
        import numpy as np

        if self._tokens is None:
            self._tokens = self._find_tokens(len(row))
        yes, no = (
            float(np.logaddexp.reduce(row[tokens].astype(np.float64))) for tokens in self._tokens
        )
        return _difference(yes, no)

    def _find_tokens(self, vocabulary: int) -> tuple[list[int], list[int]]:
        """Return the tokens that are words for yes, and for no."""
        found: dict[str, list[int]] = {}
        wanted = {_plain(w) for w in (*self._config.positive, *self._config.negative)}
        for token in range(vocabulary):
            text = self._reader.decode([token])
            if "\n" not in text and _plain(text) in wanted:
                found.setdefault(_plain(text), []).append(token)
        lists = []
        for words in (self._config.positive, self._config.negative):
            tokens = {token for word in words for token in found.get(_plain(word), ())}
            if not tokens:
                raise UserError(
                    f"{self._why}: the reader has no token for {' or '.join(map(repr, words))}: "
                    "set other words, or way to score"
                )
            lists.append(sorted(tokens))
        return lists[0], lists[1]

    def _by_score(self, prompts: Sequence[Prompt]) -> list[float | Failure]:
        words = [*self._config.positive, *self._config.negative]
        # A prompt's words are adjacent, so that readers run it through the model once.
        scores = self._reader.score(
            [prompt for prompt in prompts for _ in words], [*words] * len(prompts)
        )
        out: list[float | Failure] = []
        positive = len(self._config.positive)
        for start in range(0, len(scores), len(words)):
            own = scores[start : start + len(words)]
            good = [score for score in own if not isinstance(score, Failure)]
            out.append(
                first_failure(own)
                or _difference(log_sum(good[:positive]), log_sum(good[positive:]))
            )
        return out


@overload
def probability(log_odds: float) -> float: ...
@overload
def probability(log_odds: float | Failure) -> float | Failure: ...
def probability(log_odds: float | Failure) -> float | Failure:
    """Return the logistic function, p(yes) / (p(yes) + p(no)); failures are returned unchanged."""
    if isinstance(log_odds, Failure):
        return log_odds
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    return math.exp(log_odds) / (1 + math.exp(log_odds))


def _plain(text: str) -> str:
    return text.strip().casefold()


def _difference(yes: float, no: float) -> float:
    # Either may be minus infinity: JSON cannot express that.
    return 0.0 if yes == no else max(-_MOST, min(_MOST, yes - no))
