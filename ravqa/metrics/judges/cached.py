"""A judge whose judgements are kept on disk, by their texts and the judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ravqa.core.cache import Memo
from ravqa.core.errors import broken
from ravqa.core.outcomes import Failure
from ravqa.core.settings import fingerprint
from ravqa.metrics.judges.base import Judge

_MIN_ALL_FAILED = 8  # answers of one call that cannot be judged, and none that can: not their fault


class CachedJudge(Judge):
    """Wraps a judge; what it has judged before is not judged again.

    A triple that could not be judged is asked for once per object, and never kept on disk. A
    judge that is gone, or that can judge none of many answers, is not asked again.
    """

    def __init__(
        self, inner: Judge, progress: Callable[[int, int], object] | None = None, *, chunk: int = 64
    ):
        """Wrap `inner`; `progress` is told how many of how many new judgements are made."""
        self.name = inner.name
        self.fingerprint = inner.fingerprint
        self._inner = inner
        self._progress = progress
        self._memo = Memo[float | Failure]("judgements", chunk=chunk, back=float)
        self._failed: dict[str, Failure] = {}
        self._gone: Failure | None = None

    def judge(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> list[float | Failure]:
        """Return one probability per triple, in order; a chunk is kept as soon as it is judged."""
        triples = list(zip(questions, references, candidates, strict=True))
        keys = [fingerprint(self.fingerprint, *triple) for triple in triples]

        def make(rows: list[int]) -> Iterator[tuple[int, float | Failure]]:
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
        failed = [outcome for outcome in out if isinstance(outcome, Failure)]
        answers = set(zip(questions, candidates, strict=True))
        if len(failed) == len(out) and len(answers) >= _MIN_ALL_FAILED and not self._gone:
            self._gone = replace(failed[0], fatal=True)
            return [self._gone] * len(out)
        return out

    def _judged(
        self, triples: Sequence[tuple[str, str, str]]
    ) -> Iterator[tuple[int, float | Failure]]:
        if not triples:
            return
        judged = set()
        for position, value in self._inner.judge_each(*zip(*triples, strict=True)):
            if not isinstance(value, Failure) and not (math.isnan(value) or 0 <= value <= 1):
                raise broken(self._inner, "judge", f"{value} is no probability")
            if position not in range(len(triples)):
                raise broken(self._inner, "judge", f"{position} is the place of no triple")
            judged.add(position)
            yield position, value
        if len(judged) != len(triples):
            found = f"{len(judged)} judgements of {len(triples)} triples"
            raise broken(self._inner, "judge", found)
