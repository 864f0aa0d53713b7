"""A passage filter, which drops passages whose score is too low."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Question
from ravqa.core.settings import fingerprint
from ravqa.rerankers.base import PassageFilter, RerankerConfig


class Threshold(PassageFilter):
    """Keeps the passages that score high enough, in their order.

    With s_1..s_n the scores of a question's hits and v the value, the rule keeps hit i if

    - `absolute`: s_i >= v;
    - `difference`: s_i >= max s - v. For scores on any scale; for logits, v is a log ratio;
    - `ratio`: s_i >= v max s. For scores that are not negative: probabilities, BM25;
    - `mass`: it is in the smallest set of best hits whose softmax(s / T) sums to at least v (as in
      nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751).
    """

    thread_safe = True

    class Config(RerankerConfig):
        """Options.

        Attributes:
            rule: see the class; None to go by the number of passages alone.
            value: v.
            temperature: T in `mass`.
            min_kept: number of first hits that are kept whatever their score.
            max_kept: most hits that are kept, the first ones; None for no limit.
        """

        rule: Literal["absolute", "difference", "ratio", "mass"] | None = None
        value: float | None = Field(default=None, allow_inf_nan=False)
        temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
        min_kept: int = Field(default=0, ge=0)
        max_kept: int | None = Field(default=None, ge=1)

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.rule is None and self.max_kept is None:
                raise ValueError("nothing to filter by: set rule and value, or max_kept")
            if (self.rule is None) != (self.value is None):
                raise ValueError("rule and value go together: set both or none")
            if self.max_kept is not None and self.min_kept > self.max_kept:
                raise ValueError(f"min_kept {self.min_kept} is more than max_kept {self.max_kept}")
            if self.value is not None:
                if self.rule in ("ratio", "mass") and not 0 < self.value <= 1:
                    raise ValueError(f"value {self.value}: {self.rule} needs 0 < value <= 1")
                if self.rule == "difference" and self.value < 0:
                    raise ValueError(f"value {self.value}: difference needs value >= 0")
            return self

    def __init__(self, config: Config):
        self.config = config
        self.fingerprint = fingerprint("threshold/1", config.model_dump())

    def keep(
        self, questions: Sequence[Question], rankings: Sequence[Sequence[Hit]]
    ) -> list[list[bool] | Failure]:
        """Return which hits the rule keeps.

        Raises:
            UserError: negative scores with the rule `ratio`.
        """
        return [self._kept([hit.score for hit in hits]) for hits in rankings]

    def _kept(self, scores: Sequence[float]) -> list[bool]:
        good = self._good(scores)
        kept = [i for i in range(len(scores)) if good[i] or i < self.config.min_kept]
        first = set(kept[: self.config.max_kept])
        return [i in first for i in range(len(scores))]

    def _good(self, scores: Sequence[float]) -> list[bool]:
        rule, value = self.config.rule, self.config.value
        if rule is None or value is None or not scores:
            return [True] * len(scores)
        best = max(scores)
        if rule == "mass":
            return _nucleus([(s - best) / self.config.temperature for s in scores], value)
        if rule == "ratio" and min(scores) < 0:
            raise UserError(
                f"reranking: threshold: the score {min(scores):g} is negative, and the rule ratio "
                "compares shares: use the rule difference"
            )
        least = {"absolute": value, "difference": best - value, "ratio": value * best}[rule]
        return [score >= least for score in scores]


def _nucleus(logits: Sequence[float], mass: float) -> list[bool]:
    """Return which are in the smallest best set with softmax sum `mass`; ties go to the first."""
    shares = [math.exp(x) for x in logits]
    wanted = mass * math.fsum(shares)
    good = [False] * len(shares)
    reached = 0.0
    for i in sorted(range(len(shares)), key=lambda i: -shares[i]):
        if reached >= wanted:
            break
        good[i] = True
        reached += shares[i]
    return good
