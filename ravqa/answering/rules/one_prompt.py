"""Rules of one prompt a question."""

from __future__ import annotations

from collections.abc import Sequence

from ravqa.answering.fitting import Pair
from ravqa.answering.rules.base import Case, Rule
from ravqa.core.records import Answer, Draft


class _OnePrompt(Rule):
    def _decide(self, case: Case, drafts: list[Draft]) -> Answer:
        raise AssertionError("there is one prompt")


class NoPassage(_OnePrompt):
    """y = reader(x): the question and its image alone, whatever was retrieved."""

    name = "none"

    def groups(self, found: Sequence[Pair]) -> list[list[Pair]]:
        """No passage."""
        return [[]]


class Top1(_OnePrompt):
    """y = reader(x, z_1): the best passage alone."""

    name = "top1"

    def groups(self, found: Sequence[Pair]) -> list[list[Pair]]:
        """The best passage."""
        return [list(found[:1])]


class Concat(_OnePrompt):
    """y = reader(x, z_1..z_K): all passages in one prompt, best first.

    Where they do not fit into the reader's context, whole passages are left out, the last first.
    """

    name = "concat"

    def groups(self, found: Sequence[Pair]) -> list[list[Pair]]:
        """All passages together."""
        return [list(found)]
