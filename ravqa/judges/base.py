"""The interface of judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Judge(Protocol):
    """Says whether candidate answers are equivalent to reference answers.

    Attributes:
        name: the judge and its model, for the results.
        fingerprint: changes with the weights and with every setting that can change a judgement.
    """

    name: str
    fingerprint: str

    def judge(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> list[float]:
        """Probability that each candidate is equivalent to its reference, 0 to 1, in order.

        nan where the judge comes to no verdict; that counts as not equivalent.
        """
        ...
