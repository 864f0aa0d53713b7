"""The contract of readers: language models that complete prompts.

A reader knows nothing of passages or retrieval. What it can do beyond generating text, it says in
its attributes (`supports_images`, `gives_log_probs`, ...); callers use nothing that is not declared
here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ravqa.core.contracts import check_count
from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PART = 64  # prompts given at once to a reader that does not return results as they are made


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a reader reads: the text, and the image for readers that can see."""

    text: str
    image: Path | bytes | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What a reader wrote.

    Attributes:
        text: the generation, without the end mark. One without a word may be a draft, but is never
            an answer.
        log_prob: sum of the log-probabilities (natural log) of the generated tokens, the end mark
            included; None if the reader does not know them.
        tokens: how many tokens that sum covers.
    """

    text: str
    log_prob: float | None = None
    tokens: int = 0


class Reader(ABC):
    """A language model that completes prompts; `generate` is all that every reader has.

    A prompt that fails costs no other: its place in the result holds a `Failure`. Where a server is
    gone, the failures of the prompts that it did not answer are fatal. An exception means that the
    call itself is wrong: bad settings, an image that cannot be read, a broken device.

    Attributes:
        fingerprint: changes with the weights and with every setting that can change an answer.
        weights: name of the weights, for people.
        deterministic: the same prompt gives the same generation; only such generations are cached.
        context: tokens that prompt and generation may have together; None if unknown.
        max_new_tokens: longest generation, in tokens.
        ends: tokens that end a generation.
        workers: how many prompts it has under way at once.
        supports_images: it looks at the prompts' images.
        gives_log_probs: its generations have log-probabilities.
        scores_answers: `score` works.
        gives_next_token_logprobs: `next_token_logprobs` works, and with it `ends`,
            `max_new_tokens` and `decode`.
        counts_tokens: `count_tokens` works.
        streams: `stream` works.
    """

    fingerprint: str
    weights: str
    deterministic: bool = False
    context: int | None = None
    max_new_tokens: int = 0
    ends: frozenset[int] = frozenset()
    workers: int = 1
    supports_images: bool = False
    gives_log_probs: bool = False
    scores_answers: bool = False
    gives_next_token_logprobs: bool = False
    counts_tokens: bool = False
    streams: bool = False

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt]) -> list[Generation | Failure]:
        """Return one generation per prompt, in order."""

    def generate_each(
        self, prompts: Sequence[Prompt]
    ) -> Iterator[tuple[int, Generation | Failure]]:
        """Yield the position of each prompt and its generation, in any order, as they are made.

        Results are kept as they come: where a process is killed, few are lost.
        """
        for start in range(0, len(prompts), _PART):
            part = prompts[start : start + _PART]
            found = self.generate(part)
            check_count("reader", self, "generate", found, len(part))
            yield from enumerate(found, start)

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | Failure]:
        """Return the log-probability that the generation after each prompt is this answer.

        Natural log, the end mark after the answer included.

        Raises:
            UserError: the reader does not score answers.
        """
        raise self._unable("score answers")

    def score_each(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[int, float | Failure]]:
        """Yield the position of each prompt and its answer's `score`, as they are made."""
        for start in range(0, len(prompts), _PART):
            part = slice(start, start + _PART)
            found = self.score(prompts[part], answers[part])
            check_count("reader", self, "score", found, len(prompts[part]))
            yield from enumerate(found, start)

    def next_token_logprobs(
        self, prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float32] | Failure]:
        """Return log-probabilities of the token after each prompt and the tokens that follow it.

        Args:
            prompts: the prompts.
            prefixes: per prompt, the tokens generated so far; empty at the beginning. A call with
                the prompts of the last one and prefixes one token longer costs one step.

        Returns:
            Per prompt float32 [vocabulary], natural logs; their exponentials sum to 1.

        Raises:
            UserError: the reader gives no next-token probabilities.
        """
        raise self._unable("give next-token probabilities")

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens, end marks left out.

        Raises:
            UserError: the reader decodes no tokens.
        """
        raise self._unable("decode tokens")

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int | Failure]:
        """Return the tokens of each prompt as the model is given it, its image included.

        Raises:
            UserError: the reader counts no tokens.
        """
        raise self._unable("count tokens")

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """Yield the generation in pieces as they are written; joined, they are its text.

        Closing the iterator stops the generation.

        Raises:
            UserError: the reader does not stream.
            PromptError, ServerError: the prompt fails.
        """
        raise self._unable("stream")

    def problem(self) -> str:
        """Return why no prompt can be answered at present, as far as that is known; else blank."""
        return ""

    def _unable(self, what: str) -> UserError:
        return UserError(f"the reader {self.weights} cannot {what}")
