"""Images of a dataset: found inside its folder only, checked before work starts, opened safely."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ravqa.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_THREADS = 4
MAX_PIXELS = 100_000_000
"""Larger images are refused: a decompression bomb needs more memory than any real photo."""


def inside(root: Path, name: str) -> Path:
    """`root/name`, if `name` stays inside `root`.

    Raises:
        DataError: an absolute path, or one that climbs out with "..".
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or ":" in "".join(relative.parts[:1]):
        raise DataError(f"image path {name!r} leaves the image folder {root}")
    return root / relative


def find(root: Path, stem: str, suffixes: Iterable[str]) -> Path | None:
    """The first of `stem` + suffix that is a file inside `root`, or None.

    Raises:
        DataError: the path leaves `root`.
    """
    for suffix in suffixes:
        path = inside(root, stem + suffix)
        try:
            found = path.is_file()
        except OSError:  # a name longer than the file system allows
            found = False
        if found:
            return path
    return None


def open_image(source: Path | bytes) -> Image:
    """An image in RGB, turned upright as its EXIF orientation says, fully decoded.

    Args:
        source: a file, or the encoded bytes.

    Raises:
        DataError: missing, not an image, cut off, or larger than MAX_PIXELS.
    """
    with _no_warnings():
        return _open(source, preview=False)


def broken_images(paths: Sequence[Path]) -> dict[Path, str]:
    """Those files that `open_image` would refuse, and why.

    A JPEG is decoded at a fraction of its size: quick, and enough to see that it is whole.
    """

    def problem(path: Path) -> str:
        try:
            _open(path, preview=True)
        except DataError as e:
            return str(e)
        return ""

    # The filter is set here and not in the threads: filters belong to the whole process.
    with _no_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        reasons = zip(paths, pool.map(problem, paths), strict=True)
        return {path: reason for path, reason in reasons if reason}


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Without Pillow's warnings: of size, which is checked, and of untidy EXIF data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(source: Path | bytes, *, preview: bool) -> Image:
    import PIL.Image
    from PIL import ImageOps

    name = str(source) if isinstance(source, Path) else "image given as bytes"
    try:
        with PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{name}: {width}x{height} pixels, more than the limit of {MAX_PIXELS}"
                )
            if preview:
                image.draft("RGB", (32, 32))
            image.load()
            with contextlib.suppress(Exception):  # broken EXIF data; the photo itself is whole
                ImageOps.exif_transpose(image, in_place=True)
            return image.convert("RGB")
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"no such image: {name}") from None
    except PIL.Image.DecompressionBombError:
        raise DataError(f"{name}: more than the limit of {MAX_PIXELS} pixels") from None
    except PIL.UnidentifiedImageError:
        raise DataError(f"{name}: not an image") from None
    except Exception as e:  # Pillow's decoders raise errors of many kinds on broken bytes
        raise DataError(f"{name}: broken image ({e or type(e).__name__})") from None


def image_bytes(source: Path | bytes) -> bytes:
    """The encoded bytes, for content hashes.

    Raises:
        DataError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as e:
        raise DataError(f"{source} cannot be read: {e}") from None
