"""A judge whose judgements are cached on disk, keyed by the texts and the judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from ravqa.core.accounts import Cost, charge
from ravqa.core.cache import Memo
from ravqa.core.errors import broken
from ravqa.core.failures import one_by_one
from ravqa.core.outcomes import Failure
from ravqa.core.settings import fingerprint
from ravqa.metrics.judges.base import Judge, NotAttempted

_MIN_ALL_FAILED = 8  # if at least this many answers fail and none succeeds, the judge is at fault


_NOT_ATTEMPTED = "not attempted"  # as the cache keeps it


def _kept(judgement: float | Failure) -> Any:
    return _NOT_ATTEMPTED if isinstance(judgement, NotAttempted) else judgement


def _found(kept: Any) -> float:
    return NotAttempted() if kept == _NOT_ATTEMPTED else float(kept)


class CachedJudge(Judge):
    """Wraps a judge and does not ask it again about what it has judged before.

    A triple that failed is not tried again by the same object, and is never stored on disk. A judge
    that is unreachable, or fails on all of many answers, is not asked any more.
    """

    def __init__(
        self, inner: Judge, progress: Callable[[int, int], object] | None = None, *, chunk: int = 64
    ):
        """Wrap `inner`; `progress` is called as progress(done, total), counting new judgements."""
        self.name = inner.name
        self.fingerprint = inner.fingerprint
        self.labels = inner.labels
        self._inner = inner
        self._progress = progress
        self._memo = Memo[float | Failure]("judgements", chunk=chunk, out=_kept, back=_found)
        self._failed: dict[str, Failure] = {}
        self._gone: Failure | None = None

    def judge(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> list[float | Failure]:
        """Return one probability per triple, in order; each chunk is stored once it is judged."""
        triples = list(zip(questions, references, candidates, strict=True))
        keys = [fingerprint(self.fingerprint, *triple) for triple in triples]

        unknown = 0

        def make(rows: list[int]) -> Iterator[tuple[int, float | Failure]]:
            nonlocal unknown
            unknown += len(rows)
            asked = []
            for place, i in enumerate(rows):
                if before := self._gone or self._failed.get(keys[i]):
                    yield place, before
                else:
                    asked.append(place)
            for position, judged in self._judged([triples[rows[place]] for place in asked]):
                place = asked[position]
                if isinstance(judged, Failure) and judged.fatal:
                    self._gone = judged
                elif isinstance(judged, Failure):
                    self._failed[keys[rows[place]]] = judged
                yield place, judged

        out = self._memo.get(keys, make, self._progress)
        if self._inner.charges:
            charge(Cost.of_kept(len(keys) - unknown, self._inner.prices))
        failed = [outcome for outcome in out if isinstance(outcome, Failure)]
        answers = set(zip(questions, candidates, strict=True))
        if len(failed) == len(out) and len(answers) >= _MIN_ALL_FAILED and not self._gone:
            self._gone = replace(failed[0], fatal=True)
            return [self._gone] * len(out)
        return out

    def _judged(
        self, triples: Sequence[tuple[str, str, str]]
    ) -> Iterator[tuple[int, float | Failure]]:
        def ask(rows: list[int]) -> Iterator[tuple[int, float | Failure]]:
            return self._checked([triples[i] for i in rows])

        return one_by_one(range(len(triples)), ask, f"the judge {self.name}")

    def _check(self, value: Any) -> None:
        if isinstance(value, NotAttempted) and self.labels == 2:
            raise broken(self._inner, "judge", "it returned NotAttempted, but its `labels` are 2")
        if isinstance(value, bool) or not isinstance(value, Real):
            got = type(value).__name__
            what = f"it returned from judge a probability of type {got}, not a number"
            raise broken(self._inner, "judge", what)
        if not (math.isnan(value) or 0 <= float(value) <= 1):
            raise broken(self._inner, "judge", f"{value} is not a probability")

    def _checked(
        self, triples: Sequence[tuple[str, str, str]]
    ) -> Iterator[tuple[int, float | Failure]]:
        if not triples:
            return
        judged = set()
        for position, value in self._inner.judge_each(*zip(*triples, strict=True)):
            if not isinstance(value, Failure):
                self._check(value)
            if position not in range(len(triples)):
                raise broken(self._inner, "judge", f"{position} is not the position of a triple")
            judged.add(position)
            yield position, value
        if len(judged) != len(triples):
            found = f"{len(judged)} judgements of {len(triples)} triples"
            raise broken(self._inner, "judge", found)
