"""A judge whose judgements are kept on disk, by their texts and the judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from ravqa.core.cache import Memo
from ravqa.core.errors import broken
from ravqa.core.settings import fingerprint
from ravqa.metrics.judges.base import Judge


class CachedJudge(Judge):
    """Wraps a judge; what it has judged before is not judged again.

    Attributes:
        judged, unclear: how many triples were asked for, and how many got no verdict.
    """

    def __init__(
        self, inner: Judge, progress: Callable[[int, int], object] | None = None, *, chunk: int = 64
    ):
        """Wrap `inner`; `progress` is told how many of how many new judgements are made."""
        self.name = inner.name
        self.fingerprint = inner.fingerprint
        self._inner = inner
        self._progress = progress
        self._memo = Memo[float]("judgements", chunk=chunk, back=float)
        self.judged = 0
        self.unclear = 0

    def judge(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> list[float]:
        """One probability per triple, in order; each chunk is kept as soon as it is judged."""
        triples = list(zip(questions, references, candidates, strict=True))
        keys = [fingerprint(self.fingerprint, *triple) for triple in triples]
        out = self._memo.get(
            keys, lambda rows: self._judged([triples[i] for i in rows]), self._progress
        )
        self.judged += len(out)
        self.unclear += sum(map(math.isnan, out))
        return out

    def _judged(self, triples: Sequence[tuple[str, str, str]]) -> Iterator[tuple[int, float]]:
        judged = set()
        for position, value in self._inner.judge_each(*zip(*triples, strict=True)):
            if not (math.isnan(value) or 0 <= value <= 1):
                raise broken(self._inner, "judge", f"{value} is no probability")
            if position not in range(len(triples)):
                raise broken(self._inner, "judge", f"{position} is the place of no triple")
            judged.add(position)
            yield position, value
        if len(judged) != len(triples):
            found = f"{len(judged)} judgements of {len(triples)} triples"
            raise broken(self._inner, "judge", found)
