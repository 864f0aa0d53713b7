"""A judge whose judgements are kept on disk, by their texts and the judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from ravqa.core.cache import Store
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
        self._chunk = chunk
        self._store = Store("judgements")
        self.judged = 0
        self.unclear = 0

    def judge(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> list[float]:
        """One probability per triple, in order; each chunk is kept as soon as it is judged."""
        triples = list(zip(questions, references, candidates, strict=True))
        keys = [fingerprint(self.fingerprint, *triple) for triple in triples]
        known: dict[str, float] = self._store.get(keys)
        new = {key: t for key, t in zip(keys, triples, strict=True) if key not in known}
        for start in range(0, len(new), self._chunk):
            part = dict(list(new.items())[start : start + self._chunk])
            try:
                for key, value in self._judged(part):
                    known[key] = value
            finally:  # where one cannot be judged, the others are kept
                self._store.put({key: known[key] for key in part if key in known})
            if self._progress:
                self._progress(start + len(part), len(new))
        out = [known[key] for key in keys]
        self.judged += len(out)
        self.unclear += sum(map(math.isnan, out))
        return out

    def _judged(self, part: Mapping[str, tuple[str, str, str]]) -> Iterator[tuple[str, float]]:
        keys = list(part)
        judged = set()
        for position, value in self._inner.judge_each(*zip(*part.values(), strict=True)):
            if not (math.isnan(value) or 0 <= value <= 1):
                raise broken(self._inner, "judge", f"{value} is no probability")
            if position not in range(len(keys)):
                raise broken(self._inner, "judge", f"{position} is the place of no triple")
            judged.add(position)
            yield keys[position], value
        if len(judged) != len(keys):
            raise broken(self._inner, "judge", f"{len(judged)} judgements of {len(keys)} triples")
