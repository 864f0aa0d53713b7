"""Readers without a model: what they score is a floor for real readers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from ravqa.config import Strict, fingerprint
from ravqa.errors import UserError
from ravqa.readers.base import Ability, Generation, Prompt


class FirstWords:
    """Answers with the first words of the prompt's first passage; "unknown" without passages."""

    abilities: frozenset[Ability] = frozenset()
    weights = "none (a rule)"

    class Config(Strict):
        """Options: how many words."""

        words: int = Field(default=3, ge=1)

    def __init__(self, config: Config):
        self.config = config
        self.fingerprint = fingerprint("first-words/1", config.words)

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """The words that follow the last "Passage:" of each prompt that has a question after it."""
        return [Generation(self._answer(prompt.text)) for prompt in prompts]

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Not among this reader's abilities.

        Raises:
            UserError: always.
        """
        raise UserError("the reader first-words cannot score answers")

    def _answer(self, text: str) -> str:
        block = text.rsplit("\n\n", 1)[-1]
        found = re.search(r"^Passage: *(.*)$", block, re.MULTILINE)
        return " ".join(found.group(1).split()[: self.config.words]) if found else "unknown"
