"""A describer whose descriptions are kept on disk, by image content and describer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ravqa.core.cache import Memo
from ravqa.core.contracts import check_count
from ravqa.core.errors import broken
from ravqa.core.failures import failures
from ravqa.core.progress import Progress
from ravqa.core.records import Description
from ravqa.core.settings import fingerprint
from ravqa.describers.base import Describer
from ravqa.images.decode import image_bytes


class CachedDescriber:
    """A wrapper that keeps descriptions; an image described before is not opened again."""

    def __init__(self, inner: Describer, *, chunk: int = 64):
        self.inner = inner
        self.fingerprint = inner.fingerprint
        self.weights = inner.weights
        self._memo = Memo("descriptions", out=asdict, back=TypeAdapter(Description).validate_python)
        self.stores = self._memo.stores
        self._chunk = chunk

    def describe(
        self, images: Sequence[Path | bytes], progress: Progress | None = None
    ) -> list[Description]:
        """Return one description per image, in order; each chunk is kept as soon as it is done.

        Raises:
            DataError: an image cannot be decoded.
            PromptError: the describer cannot process an image.
        """
        out: list[Description] = []
        if progress and images:
            progress("describing images", 0, len(images))
        for start in range(0, len(images), self._chunk):
            part = images[start : start + self._chunk]
            keys = [fingerprint(self.fingerprint, image_bytes(image)) for image in part]
            out += self._memo.get(keys, partial(self._made, part))
            if progress:
                progress("describing images", len(out), len(images))
        return out

    def _made(
        self, images: Sequence[Path | bytes], rows: list[int]
    ) -> Iterable[tuple[int, Description]]:
        with failures("the describer"):
            found: Any = self.inner.describe([images[i] for i in rows])
        check_count("describer", self.inner, "describe", found, len(rows))
        for value in found:
            if not isinstance(value, Description):
                got = type(value).__name__
                what = f"it returned from describe {got} instead of a Description"
                raise broken(self.inner, "describer", what)
        return enumerate(found)
