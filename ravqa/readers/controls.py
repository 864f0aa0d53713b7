"""Readers without a model: what they score is a floor for real readers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from ravqa.config import Strict, fingerprint
from ravqa.errors import UserError
from ravqa.readers.base import Ability, Generation, Prompt


class Control:
    """Base class: answers by a rule, and can do nothing else."""

    abilities: frozenset[Ability] = frozenset()
    deterministic = True
    weights = "none (a rule)"
    context: int | None = None
    max_new_tokens = 0
    ends: frozenset[int] = frozenset()
    name: str

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """One answer per prompt, in order, without log-probabilities."""
        return [Generation(self._answer(prompt.text)) for prompt in prompts]

    def _answer(self, text: str) -> str:
        raise NotImplementedError

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Not among this reader's abilities.

        Raises:
            UserError: always.
        """
        raise self._unable("score answers")

    def next_token_logprobs(
        self, prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]]
    ) -> Any:
        """Not among this reader's abilities.

        Raises:
            UserError: always.
        """
        raise self._unable("give next-token probabilities")

    def decode(self, tokens: Sequence[int]) -> str:
        """Not among this reader's abilities.

        Raises:
            UserError: always.
        """
        raise self._unable("decode tokens")

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Not among this reader's abilities.

        Raises:
            UserError: always.
        """
        raise self._unable("count tokens")

    def _unable(self, what: str) -> UserError:
        return UserError(f"the reader {self.name} cannot {what}: it has no model")


class FirstWords(Control):
    """Answers with the first words of the prompt's first passage; "unknown" without passages."""

    name = "first-words"

    class Config(Strict):
        """Options: how many words."""

        words: int = Field(default=3, ge=1)

    def __init__(self, config: Config):
        self.config = config
        self.fingerprint = fingerprint("first-words/1", config.words)

    def _answer(self, text: str) -> str:
        block = text.rsplit("\n\n", 1)[-1]
        found = re.search(r"^Passage: *(.*)$", block, re.MULTILINE)
        return " ".join(found.group(1).split()[: self.config.words]) if found else "unknown"
