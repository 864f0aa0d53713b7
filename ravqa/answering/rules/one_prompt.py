"""Rules with one prompt per question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import model_validator

from ravqa.answering.fitting import Pair
from ravqa.answering.rules.base import Case, DecisionRule
from ravqa.core.errors import UserError
from ravqa.core.records import Answer, Draft


class _OnePrompt(DecisionRule):
    @property
    def chooses(self) -> bool:
        """False: there is one prompt."""
        return False

    def decide(self, case: Case, drafts: list[Draft]) -> Answer:
        """Never called: there is nothing to choose from."""
        raise AssertionError("there is one prompt")


class NoPassage(_OnePrompt):
    """y = reader(x): the question and its image alone; retrieved passages are ignored."""

    @property
    def most_passages(self) -> int:
        """Return 0."""
        return 0

    def groups(self, found: Sequence[Pair]) -> list[list[Pair]]:
        """Return one prompt without passages."""
        return [[]]


class Top1(_OnePrompt):
    """y = reader(x, z_1): the best passage alone."""

    class Config(_OnePrompt.Config):
        """Options of answering."""

        @model_validator(mode="after")
        def _check_passages(self) -> Self:
            if self.passages > 1:
                raise UserError(
                    f"answering.passages is {self.passages}, but answering.decision "
                    f"{self.decision} reads only one: set the decision to joint_max or concat"
                )
            return self

    def groups(self, found: Sequence[Pair]) -> list[list[Pair]]:
        """Return one prompt with the best passage."""
        return [list(found[:1])]


class Concat(_OnePrompt):
    """y = reader(x, z_1..z_K): all passages in one prompt, best first.

    If they do not fit into the reader's context, whole passages are dropped, the last first.
    """

    def groups(self, found: Sequence[Pair]) -> list[list[Pair]]:
        """Return one prompt with all passages."""
        return [list(found)]
