"""The contract of judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ravqa.core.outcomes import Failure
from ravqa.core.settings import Strict


@dataclass(frozen=True, slots=True)
class NoVerdict(Failure):
    """A judge looked at an answer and came to no verdict; it would come to none again."""


class Judge(ABC):
    """Says whether candidate answers are equivalent to reference answers.

    Attributes:
        name: the judge and its model, for the results.
        fingerprint: changes with the weights and with every setting that can change a judgement.
    """

    class Config(Strict):
        """The judge's options; none, unless it has its own."""

    name: str
    fingerprint: str

    def __init__(self, config: Any = None):
        """Take the judge's validated options; None for their defaults.

        Raises:
            UserError: what the judge needs (a package, a model, a file) does not exist.
        """
        self.config: Any = self.Config() if config is None else config

    @abstractmethod
    def judge(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> Sequence[float | Failure]:
        """Return the probability that each candidate is equivalent to its reference, in order.

        Returns:
            One number per triple, 0 to 1; nan where the judge comes to no verdict, which counts as
            not equivalent. A failure where a triple could not be judged; a fatal one where none
            after it could be.
        """

    def judge_each(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> Iterator[tuple[int, float | Failure]]:
        """Yield the place of a triple and its judgement, as `judge` returns it, in any order."""
        yield from enumerate(self.judge(questions, references, candidates))
