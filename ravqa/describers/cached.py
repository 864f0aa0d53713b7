"""A describer whose descriptions are kept on disk, by image content and describer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from ravqa.core.accounts import Cost, charge
from ravqa.core.cache import Memo
from ravqa.core.contracts import check_count
from ravqa.core.errors import broken
from ravqa.core.failures import failures
from ravqa.core.progress import Progress
from ravqa.core.records import Description, Question
from ravqa.core.settings import fingerprint
from ravqa.describers.base import Describer
from ravqa.images.decode import image_bytes

T = TypeVar("T")


class CachedDescriber:
    """A wrapper that keeps descriptions; an image described before is not opened again."""

    def __init__(self, inner: Describer, *, chunk: int = 64):
        self.inner = inner
        self.fingerprint = inner.fingerprint
        self.weights = inner.weights
        self._memo = Memo("descriptions", out=asdict, back=TypeAdapter(Description).validate_python)
        self.stores = self._memo.stores if inner.kept else inner.stores
        self._chunk = chunk

    def describe(
        self, images: Sequence[Path | bytes], progress: Progress | None = None
    ) -> list[Description]:
        """Return one description per image, in order; each chunk is kept as soon as it is done.

        Raises:
            DataError: an image cannot be decoded.
            PromptError: the describer cannot process an image.
        """
        return self._described(images, self.inner.describe, image_bytes, progress)

    def describe_questions(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Description]:
        """Return one description per question, of its image, as `describe` does.

        Each image is described once, unless the describer reads the questions too.

        Raises:
            DataError, PromptError: as `describe`.
        """
        if self.inner.reads_questions:
            return self._described(questions, self.inner.describe_questions, self._key, progress)
        images = [q.image for q in questions if q.image is not None]
        unique = list(dict.fromkeys(images))
        seen = dict(zip(unique, self.describe(unique, progress), strict=True))
        return [seen[image] for image in images]

    def _key(self, question: Question) -> Any:
        image = b"" if question.image is None else image_bytes(question.image)
        return [fingerprint(image), self.inner.asked(question)]

    def _described(
        self,
        items: Sequence[T],
        describe: Callable[[Sequence[T]], Any],
        key: Callable[[T], Any],
        progress: Progress | None,
    ) -> list[Description]:
        out: list[Description] = []
        if progress and items:
            progress("describing images", 0, len(items))
        for start in range(0, len(items), self._chunk):
            part = items[start : start + self._chunk]
            if self.inner.kept:
                keys = [fingerprint(self.fingerprint, key(item)) for item in part]
                made = self._memo.made
                out += self._memo.get(keys, partial(self._made, part, describe))
                self._charge_reused(len(part) - (self._memo.made - made))
            else:
                out += [found for _, found in self._made(part, describe, range(len(part)))]
            if progress:
                progress("describing images", len(out), len(items))
        return out

    def _charge_reused(self, descriptions: int) -> None:
        for reader in self.inner.readers:
            charge(Cost.of_kept(descriptions, reader.prices))

    def _made(
        self, items: Sequence[T], describe: Callable[[Sequence[T]], Any], rows: Sequence[int]
    ) -> Iterable[tuple[int, Description]]:
        with failures("the describer"):
            found: Any = describe([items[i] for i in rows])
        check_count("describer", self.inner, "describe", found, len(rows))
        for value in found:
            if not isinstance(value, Description):
                got = type(value).__name__
                what = f"it returned from describe {got} instead of a Description"
                raise broken(self.inner, "describer", what)
        return enumerate(found)
