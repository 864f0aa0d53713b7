"""Photos of a report, scaled down so that all fit within a bound."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ravqa.core.errors import DataError
from ravqa.core.progress import Progress
from ravqa.core.quiet import quiet
from ravqa.images.decode import small_image

if TYPE_CHECKING:
    from PIL.Image import Image

_THREADS = 4
_CHUNK = 64
_TRIED = 16
# Longest side in pixels, and quality.
_SIZES = ((512, 78), (384, 72), (288, 66), (224, 60), (160, 52), (112, 45))


def thumbnails(
    sources: Sequence[Path | bytes],
    budget: int,
    progress: Progress | None = None,
) -> list[str | None]:
    """Return images as data URLs of one size: the largest for about `budget` bytes in all.

    Args:
        sources: images, each once.
        budget: bytes before base64, which turns three bytes into four.
        progress: called as progress(what, done, total).

    Returns:
        One URL per source, in order; None if there is no image or it cannot be decoded.
    """
    step = max(1, len(sources) // _TRIED)
    with quiet():
        size = _size(sources[::step], budget / max(1, len(sources)))

    def one(source: Path | bytes) -> str | None:
        try:
            return _url(*_small(source, size))
        except DataError:
            return None

    found: list[str | None] = []
    with quiet(), ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(sources), _CHUNK):
            found += pool.map(one, sources[start : start + _CHUNK])
            if progress:
                progress("photos of the report", len(found), len(sources))
    return found


def data_url(image: Image, quality: int = 80) -> str:
    """Return an image as a data URL."""
    return _url(*_encoded(image, quality))


def _size(sources: Sequence[Path | bytes], share: float) -> tuple[int, int]:
    """Return the largest size at which these images average at most `share` bytes."""
    for size in _SIZES[:-1]:
        lengths = []
        for source in sources:
            try:
                lengths.append(len(_small(source, size)[1]))
            except DataError:
                continue
        if sum(lengths) <= share * len(lengths):
            return size
    return _SIZES[-1]


def _small(source: Path | bytes, size: tuple[int, int]) -> tuple[str, bytes]:
    return _encoded(small_image(source, size[0]), size[1])


def _encoded(image: Image, quality: int) -> tuple[str, bytes]:
    """Return format name and bytes: WebP, or JPEG if Pillow was built without it."""
    from PIL import features

    out = io.BytesIO()
    form = "webp" if features.check("webp") else "jpeg"
    image.save(out, form.upper(), quality=quality)
    return form, out.getvalue()


def _url(form: str, data: bytes) -> str:
    return f"data:image/{form};base64,{base64.b64encode(data).decode()}"
