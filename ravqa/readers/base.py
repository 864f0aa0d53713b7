"""The interface of readers.

A reader knows nothing of passages or retrieval: it is given prompts (and images) and says what it
can do in `abilities`. Answering drives every reader through these calls only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Ability = Literal["images", "log_probs", "score"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a reader reads: the text, and the image for readers that can see."""

    text: str
    image: Path | bytes | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What a reader wrote.

    Attributes:
        text: the generation, without the end mark.
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
            "score": `score` works.
        fingerprint: changes with the weights and with every setting that can change an answer.
        weights: the weights' name, for people.
    """

    abilities: frozenset[Ability]
    fingerprint: str
    weights: str

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """One generation per prompt, in order."""
        ...

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Log-probability of each answer, end mark included, after its prompt."""
        ...
