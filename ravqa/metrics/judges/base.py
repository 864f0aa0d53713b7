"""The interface of judges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable


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


@runtime_checkable
class StreamingJudge(Protocol):
    """What a judge may offer besides: judgements as they are made, so that an error costs few."""

    def judge_each(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> Iterator[tuple[int, float]]:
        """Position of a triple and its judgement, in any order; an error comes after the others."""
        ...
