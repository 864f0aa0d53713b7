"""Images that strangers send: checked against limits before they are decoded, and written anew."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ravqa.core.errors import DataError
from ravqa.core.texts import readable_size
from ravqa.images.decode import BYTES_NAME, image_size, open_image

_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an upload.

    Attributes:
        file: most bytes of the file.
        pixels: most pixels, width times height, as the file's header says. Decoding a WebP takes
            up to 20 bytes for each: with the default, no photo takes more than 500 MB.
        side: longer side in pixels of what is kept; larger images are scaled down.
    """

    file: int = 20_000_000
    pixels: int = 25_000_000
    side: int = 2048


def photo(data: bytes, limits: Limits | None = None) -> bytes:
    """Return an uploaded image that is only looked at: as it is, or, if it is large, as `uploaded`.

    Raises:
        DataError: no image, or one beyond the limits. Of a small one, only the header is read.
    """
    limits = limits or Limits()
    width, height = _check(data, limits)
    return data if max(width, height) <= limits.side else uploaded(data, limits)


def uploaded(data: bytes, limits: Limits | None = None) -> bytes:
    """Return an uploaded image as JPEG or PNG: upright, in RGB, without metadata such as places.

    An image that was a JPEG stays one; all others become PNG, so that no detail is lost.

    Raises:
        DataError: no image, a broken one, or one beyond the limits; the message names no file.
    """
    limits = limits or Limits()
    _check(data, limits)
    with _nameless():
        image = open_image(data)
    image.thumbnail((limits.side, limits.side))
    image.info.clear()
    out = io.BytesIO()
    if data.startswith(_JPEG):
        image.save(out, "JPEG", quality=95, subsampling=0)
    else:
        image.save(out, "PNG")
    return out.getvalue()


def _check(data: bytes, limits: Limits) -> tuple[int, int]:
    """Return width and height of an image within the limits, as its header says."""
    if not data:
        raise DataError("the file is empty")
    if len(data) > limits.file:
        raise DataError(f"more than the limit of {readable_size(limits.file)}")
    with _nameless():
        width, height = image_size(data)
    if width * height > limits.pixels:
        raise DataError(f"{width}x{height} pixels, more than the limit of {limits.pixels:,}")
    return width, height


@contextmanager
def _nameless() -> Iterator[None]:
    try:
        yield
    except DataError as e:
        raise DataError(str(e).removeprefix(f"{BYTES_NAME}: ")) from None
