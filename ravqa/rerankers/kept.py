"""Scores of rerankers, kept on disk by content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ravqa.core.cache import Store
from ravqa.core.outcomes import Failure
from ravqa.core.settings import fingerprint
from ravqa.images.decode import image_bytes


class KeptScores:
    """Scores by keys of content; those that are not known are made, and kept chunk by chunk.

    Attributes:
        made: how many scores were made.
        stores: the cache on disk; none if it is not used.
    """

    def __init__(self, *, keep: bool = True, chunk: int = 64):
        """Open the cache.

        Args:
            keep: use the cache on disk; equal keys of one call are made once all the same.
            chunk: how many scores are made before they are kept.
        """
        self._store = Store("reranking") if keep else None
        self.stores: Sequence[Store] = (self._store,) if self._store else ()
        self._chunk = chunk
        self.made = 0

    def get(
        self, keys: Sequence[str], make: Callable[[list[int]], Sequence[float | Failure]]
    ) -> list[float | Failure]:
        """Return one score per key, in order.

        Args:
            keys: each a hash of all that its score depends on.
            make: gives the scores of the positions in `keys` that it is given; failures are not
                kept.
        """
        known: dict[str, float | Failure] = self._store.get(keys) if self._store else {}
        places = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        rows = sorted(places.values())
        for start in range(0, len(rows), self._chunk):
            part = rows[start : start + self._chunk]
            made = dict(zip((keys[i] for i in part), make(part), strict=True))
            good = {k: float(value) for k, value in made.items() if not isinstance(value, Failure)}
            self.made += len(good)
            if self._store:
                self._store.put(good)
            known.update({**made, **good})
        return [known[key] for key in keys]


def image_prints(images: Sequence[Path | bytes | None]) -> list[str]:
    """A hash of each image's bytes, "" for none; an image that occurs often is read once.

    Raises:
        DataError: an image cannot be read.
    """
    read: dict[Path | bytes | None, str] = {None: ""}
    for image in images:
        if image is not None and image not in read:
            read[image] = fingerprint(image_bytes(image))
    return [read[image] for image in images]
