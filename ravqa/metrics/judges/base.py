"""The contract of judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from ravqa.core.accounts import Prices
from ravqa.core.contracts import check_count
from ravqa.core.outcomes import Failure
from ravqa.core.settings import Strict


@dataclass(frozen=True, slots=True)
class NoVerdict(Failure):
    """A judge read an answer and gave no verdict; asking again would not help."""


class NotAttempted(float):
    """Probability 0 of an answer that does not try to answer, by a judge with three labels."""

    __slots__ = ()

    def __new__(cls) -> Self:
        """Make it; it always is 0."""
        return super().__new__(cls, 0.0)


class Judge(ABC):
    """Decides whether candidate answers are equivalent to reference answers.

    Attributes:
        name: name of the judge and its model, for results.
        fingerprint: changes with the weights and with every setting that can change a judgement.
        labels: 3 if it may say that an answer does not try to answer (`NotAttempted`), else 2.
        charges: whether it charges the account at hand for what it does
            (`ravqa.core.accounts.charge`).
        prices: what tokens cost, if that is known.
        workers: number of triples judged concurrently.
    """

    class Config(Strict):
        """Options; empty unless a judge defines its own."""

    name: str
    fingerprint: str
    labels: Literal[2, 3] = 2
    charges: bool = False
    prices: Prices | None = None
    workers: int = 1

    def __init__(self, config: Any = None):
        """Store the validated options; None for the defaults.

        Raises:
            UserError: a package, model or file that the judge needs does not exist.
        """
        self.config: Any = self.Config() if config is None else config

    @property
    def thread_safe(self) -> bool:
        """Whether several threads may call the judge at the same time, and several runs use it.

        By default, judges that work on several triples at a time (`workers`) are.
        """
        return self.workers > 1

    @abstractmethod
    def judge(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> Sequence[float | Failure]:
        """Return the probability that each candidate is equivalent to its reference, in order.

        Returns:
            One number per triple, 0 to 1; `NotAttempted` is a 0 that says why, of judges
            with three labels. NaN means that the judge gave no verdict, which counts as not
            equivalent. A triple that cannot be judged
            gets a `Failure`; a fatal one if the following triples would fail too.
        """

    def judge_each(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> Iterator[tuple[int, float | Failure]]:
        """Yield each triple's position and judgement, as `judge` returns it, in any order."""
        found = self.judge(questions, references, candidates)
        check_count("judge", self, "judge", found, len(questions))
        yield from enumerate(found)
