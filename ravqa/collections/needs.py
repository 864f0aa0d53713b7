"""What adding passages to a collection will need, from a measured sample of the first ones."""

from __future__ import annotations

import itertools
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ravqa.core.errors import UserError
from ravqa.core.locations import cache_dir
from ravqa.core.progress import duration
from ravqa.core.records import Passage
from ravqa.core.texts import number_of, readable_size
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import Encoder
from ravqa.indexes.base import Footprint

SAMPLE = 64  # passages that are encoded for the estimate
_FIRST = 4  # of these, which also load what an encoder loads on first use; they are not timed
_TABLES = 40  # bytes of a passage's entries in tables: offset, hash and row of passage and index


@dataclass(frozen=True, slots=True)
class Needs:
    """An estimate.

    Attributes:
        passages: that are encoded.
        sample: how many of the first ones were encoded for this.
        vectors: of all passages.
        seconds: to encode them, as fast as the sample.
        cache: bytes in the cache folder: vectors until they are in the index.
        folder: bytes in the collection's folder; None if the index's are not known.
        memory: bytes of this process at the most: what it has now, and the index's; None likewise.
        elsewhere: whether the index is at a server, whose disk and memory are not included.
    """

    passages: int
    sample: int
    vectors: int
    seconds: float
    cache: int
    folder: int | None
    memory: int | None
    elsewhere: bool

    def __str__(self) -> str:
        unknown = "not known for this index"
        disk = unknown if self.folder is None else readable_size(self.folder + self.cache)
        memory = unknown if self.memory is None else readable_size(self.memory)
        server = ", besides the server's" if self.elsewhere else ""
        return (
            f"{number_of(self.passages, 'passage')} to encode, {self.vectors:,} vectors; time: "
            f"about {duration(self.seconds)}; disk: {disk}; memory: {memory}{server} (by the first "
            f"{self.sample})"
        )

    def check_disk(self, folder: Path) -> None:
        """Raise UserError if there is less free space than is needed.

        Args:
            folder: the collection's, which need not exist yet.
        """
        path = folder.absolute()
        there = next(place for place in (path, *path.parents) if place.exists())
        cache = cache_dir()
        places = {there: self.folder or 0}
        if there.stat().st_dev == cache.stat().st_dev:
            places[there] += self.cache
        else:
            places[cache] = self.cache
        for place, needed in places.items():
            free = shutil.disk_usage(place).free
            if needed > free:
                raise UserError(
                    f"the disk of {place} is too small: {readable_size(needed)} are needed (by the "
                    f"first {number_of(self.sample, 'passage')} of {self.passages:,}), "
                    f"{readable_size(free)} are free"
                )


def estimate(
    corpus: Corpus,
    ids: Sequence[str],
    encoder: Encoder,
    footprint: Footprint | None,
    *,
    elsewhere: bool,
) -> Needs:
    """Encode the first passages and return what all of them need.

    Args:
        ids: of the passages that will be encoded; at least one.
        footprint: of the index's kind.

    Raises:
        DataError: an image of a passage cannot be decoded.
    """
    sample = [corpus[i] for i in itertools.islice(ids, SAMPLE)]
    warm, timed = sample[:_FIRST], sample[_FIRST:]
    arrays = list(encoder.encode_passages(warm))
    begun = time.perf_counter()
    rest = encoder.encode_passages(timed or warm)
    seconds = (time.perf_counter() - begun) / len(rest)
    arrays += rest if timed else []
    share = len(ids) / len(sample)
    vectors = round(share * sum(map(len, arrays)))
    own = sum(map(_size, sample)) * share + _TABLES * len(ids)
    used = footprint or Footprint(0.0, None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return Needs(
        passages=len(ids),
        sample=len(sample),
        vectors=vectors,
        seconds=seconds * len(ids),
        cache=round(share * sum(array.nbytes for array in arrays)),
        folder=round(own + used.disk * vectors) if footprint is not None else None,
        memory=None if used.memory is None else round(peak + used.base + used.memory * vectors),
        elsewhere=elsewhere,
    )


def _size(passage: Passage) -> int:
    """Return the bytes of a passage's text and image."""
    image = passage.image.stat().st_size if passage.image is not None else 0
    return len(passage.content.encode()) + len(str(dict(passage.extra))) + image
