"""A describer whose descriptions are kept on disk, by image content and describer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from ravqa.core.cache import Store
from ravqa.core.errors import broken
from ravqa.core.failures import failures
from ravqa.core.records import Description
from ravqa.core.settings import fingerprint
from ravqa.describers.base import Describer
from ravqa.images.decode import image_bytes

_DESCRIPTION = TypeAdapter(Description)


class CachedDescriber:
    """Wraps a describer; an image it has described before is not opened again."""

    def __init__(self, inner: Describer, *, chunk: int = 64):
        self.inner = inner
        self.fingerprint = inner.fingerprint
        self.weights = inner.weights
        self._store = Store("descriptions")
        self.stores = (self._store,)
        self._chunk = chunk

    def describe(
        self, images: Sequence[Path | bytes], progress: Callable[[int], object] | None = None
    ) -> list[Description]:
        """One description per image, in order; each chunk is kept as soon as it is done.

        Raises:
            DataError: an image cannot be decoded.
            PromptError: the describer cannot take an image.
        """
        out: list[Description] = []
        for start in range(0, len(images), self._chunk):
            part = images[start : start + self._chunk]
            keys = [fingerprint(self.fingerprint, image_bytes(image)) for image in part]
            known = {k: _DESCRIPTION.validate_python(v) for k, v in self._store.get(keys).items()}
            new = {k: image for k, image in zip(keys, part, strict=True) if k not in known}
            if new:
                with failures("the describer"):
                    found = self.inner.describe(list(new.values()))
                if len(found) != len(new) or not all(isinstance(d, Description) for d in found):
                    raise broken(self.inner, "describer", f"{len(new)} descriptions are expected")
                made = dict(zip(new, found, strict=True))
                self._store.put({key: asdict(description) for key, description in made.items()})
                known.update(made)
            out += [known[key] for key in keys]
            if progress:
                progress(len(part))
        return out
