"""Images that strangers send: checked against limits before they are decoded, and written anew."""

from __future__ import annotations

import io
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
        pixels: most pixels, width times height, as the file's header says.
        side: longer side in pixels of what is kept; larger images are scaled down.
    """

    file: int = 20_000_000
    pixels: int = 50_000_000
    side: int = 2048


def uploaded(data: bytes, limits: Limits | None = None) -> bytes:
    """Return an uploaded image as JPEG or PNG: upright, in RGB, without metadata such as places.

    An image that was a JPEG stays one; all others become PNG, so that no detail is lost.

    Raises:
        DataError: no image, a broken one, or one beyond the limits; the message names no file.
    """
    limits = limits or Limits()
    if not data:
        raise DataError("the file is empty")
    if len(data) > limits.file:
        raise DataError(f"more than the limit of {readable_size(limits.file)}")
    try:
        width, height = image_size(data)
        if width * height > limits.pixels:
            raise DataError(f"{width}x{height} pixels, more than the limit of {limits.pixels:,}")
        image = open_image(data)
    except DataError as e:
        raise DataError(str(e).removeprefix(f"{BYTES_NAME}: ")) from None
    image.thumbnail((limits.side, limits.side))
    image.info.clear()
    out = io.BytesIO()
    if data.startswith(_JPEG):
        image.save(out, "JPEG", quality=95, subsampling=0)
    else:
        image.save(out, "PNG")
    return out.getvalue()
