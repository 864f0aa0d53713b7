"""The interface of readers.

A reader knows nothing of passages or retrieval: it is given prompts (and images) and says what it
can do in `abilities`. Answering drives every reader through these calls only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Ability = Literal["images", "log_probs", "score", "next_token", "count", "stream"]


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


class Reader(Protocol):
    """A language model that completes prompts.

    Attributes:
        abilities: "images": prompts' images are looked at; "log_probs": generations have them;
            "score": `score` works; "next_token": `next_token_logprobs` works, with `ends`,
            `max_new_tokens` and `decode`; "count": `count_tokens` works; "stream": it is a
            `TextStreaming` reader.
        deterministic: the same prompt gives the same generation; only such are cached.
        fingerprint: changes with the weights and with every setting that can change an answer.
        weights: the weights' name, for people.
        context: tokens that prompt and generation may have together; None if it is not known.
        max_new_tokens: the longest generation, in tokens.
        ends: tokens that end a generation.

    One that asks a server also has `workers`, how many prompts it has under way at once, and
    `problem()`, which says why it can answer none at present.
    """

    abilities: frozenset[Ability]
    deterministic: bool
    fingerprint: str
    weights: str
    context: int | None
    max_new_tokens: int
    ends: frozenset[int]

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """One generation per prompt, in order.

        Raises:
            PromptError: prompts that the model has no generation for, and why.
        """
        ...

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Log-probability that the generation after each prompt is this answer, ended behind it."""
        ...

    def next_token_logprobs(
        self, prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]]
    ) -> Any:
        """Log-probabilities of the token that comes after each prompt and the tokens behind it.

        Args:
            prefixes: per prompt, the tokens generated so far; empty at the beginning. A call with
                the prompts of the last one and prefixes one token longer costs one step.

        Returns:
            float32 array [prompts, vocabulary], natural logs; each row's exponentials sum to 1.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, end marks left out."""
        ...

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt as the model is given it, its image included."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """What a reader may offer besides: results as they are made, so that a crash costs few.

    Where a prompt fails (PromptError), the others are still given before the error is raised.
    """

    def generate_each(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Generation]]:
        """Position of a prompt and its generation, in any order."""
        ...

    def score_each(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[int, float]]:
        """Position of a prompt and its answer's log-probability, in any order."""
        ...


@runtime_checkable
class TextStreaming(Protocol):
    """What a reader with the ability "stream" offers."""

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """The generation in pieces, as they are written; joined, they are the text of `generate`.

        Who stops reading stops the generation.
        """
        ...
