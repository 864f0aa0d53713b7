"""Images decoded safely: known by their content, checked before work starts, upright, in RGB."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ravqa.core.errors import DataError, PromptError, first_line
from ravqa.core.files import atomic_write, check_file, irregular
from ravqa.core.locations import cache_dir
from ravqa.core.quiet import quiet
from ravqa.core.settings import fingerprint
from ravqa.images.archives import archive, archive_of

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

_THREADS = 4
MAX_PIXELS = 100_000_000
"""Larger images are refused: a decompression bomb needs more memory than any real photo."""

MAX_FILE = 2**30
"""Larger files, in bytes, are not read as images."""
MAX_RATIO = 200
"""No image whose longer side is more than this times the shorter is given to another library."""
_MARGIN = 4  # pixels, or scaled pixels where these are larger, that a filter reads around a box
_STRETCH = 16  # scaled sides that are longer than this times what is needed are not made whole

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".jfif", ".jpe", ".jif", ".avif"),
)
"""Suffixes of images, the likeliest first; upper and lower case are the same."""
_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101  # tags of EXIF and TIFF
_STRIP = 2**20  # values that are scaled to 8 bits at a time

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))  # PNG chunks: texts, the colour profile
_HEAD = 32  # bytes of a file that say what it is
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|II\*\0|MM\0\*|BM.{4}\0{4}"
    rb"|.{4}ftypavi[fs]",
    re.DOTALL,
)

BYTES_NAME = "image given as bytes"
"""What messages call an image that has no path."""

BLACK = b"P4\n336 336\n" + b"\xff" * (336 // 8 * 336)
"""A black image of 336 x 336 pixels, as bytes: what M2KR's text-only queries are encoded with."""


def is_image(data: bytes) -> bool:
    """Whether bytes begin as those of an image that is read."""
    return _MAGIC.match(data) is not None


def is_image_file(path: Path) -> bool:
    """Whether a file is an image by its suffix, or by its first bytes where the suffix is none."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        if archive_of(path) is not None:
            return is_image(image_bytes(path))
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return is_image(file.read(_HEAD))
    except (OSError, ValueError, DataError):
        return False


def as_source(image: Path | str | bytes | None) -> Path | bytes | None:
    """An image as callers name it, as records have it; an empty name is none."""
    return (Path(image) if image else None) if isinstance(image, str) else image


def open_image(source: Path | bytes) -> Image:
    """An image in RGB, turned upright as its EXIF orientation says, fully decoded.

    Args:
        source: a file, or the encoded bytes.

    Raises:
        DataError: missing, not an image, cut off, or larger than MAX_PIXELS.
    """
    with quiet():
        return _open(source, to_rgb)


def open_for_library(source: Path | bytes) -> Image:
    """An image as `open_image` gives it, for a library that scales it by its shorter side.

    Raises:
        DataError: as `open_image`.
        PromptError: it is more than MAX_RATIO times as long as wide, so that scaling could take all
            memory; other images can be used.
    """
    image = open_image(source)
    if problem := _too_thin(source, image.size):
        raise PromptError(problem)
    return image


def _too_thin(source: Path | bytes, size: tuple[int, int]) -> str:
    """Return that one side of an image is far too long, or an empty string."""
    if max(size) <= MAX_RATIO * min(size):
        return ""
    name = str(source) if isinstance(source, Path) else BYTES_NAME
    return f"{name}: {size[0]}x{size[1]} pixels: one side is more than {MAX_RATIO} times the other"


def scaled(
    image: Image, sides: tuple[int, int], kept: tuple[int, int], resample: int | None = None
) -> Image:
    """An image scaled to `sides`; of a side that gets very long, only the middle is made.

    Args:
        sides: width and height.
        kept: pixels of the middle that are needed at least.
        resample: Pillow's filter.
    """
    out, box = list(sides), [0.0, 0.0, *map(float, image.size)]
    for axis in (0, 1):
        if sides[axis] > _STRETCH * kept[axis]:
            ratio = image.size[axis] / sides[axis]
            first = (sides[axis] - kept[axis]) // 2 * ratio
            # Cut to whole pixels with a margin for the filter: Pillow's boxes are not precise.
            start = max(0, math.floor(first - _MARGIN * max(1, ratio)))
            end = math.ceil(first + kept[axis] * ratio + _MARGIN * max(1, ratio))
            whole = [0, 0, *image.size]
            whole[axis], whole[axis + 2] = start, min(end, image.size[axis])
            image = image.crop((whole[0], whole[1], whole[2], whole[3]))
            out[axis] = kept[axis]
            box[axis], box[axis + 2] = first - start, first - start + kept[axis] * ratio
    return image.resize((out[0], out[1]), resample, box=(box[0], box[1], box[2], box[3]))


def image_size(source: Path | bytes) -> tuple[int, int]:
    """Width and height of what `open_image` gives, read from the file's header alone.

    Raises:
        DataError: missing, not an image, or larger than MAX_PIXELS.
    """
    with quiet():
        return _open(source, _upright_size)


def small_image(source: Path | bytes, side: int) -> Image:
    """An image as `open_image` gives it, scaled down so that no side is longer than `side`.

    A JPEG is decoded at a fraction of its size. To be called inside `quiet()`: threads cannot each
    keep Pillow's warnings away.

    Raises:
        DataError: missing, not an image, cut off, or larger than MAX_PIXELS.
    """

    def read(image: Image) -> Image:
        image.draft("RGB", (2 * side, 2 * side))
        return to_rgb(image)

    small = _open(source, read)
    small.thumbnail((side, side))
    return small


def broken_images(paths: Sequence[Path]) -> dict[Path, str]:
    """Those files that `open_image` would refuse, and why.

    A JPEG is decoded at a fraction of its size: quick, and enough to see that it is whole.
    """

    def problem(path: Path) -> str:
        _open(path, _preview)
        return ""

    return _problems(paths, problem)


def unusable_images(paths: Sequence[Path]) -> dict[Path, str]:
    """Those files that `open_for_library` would refuse, and why; as quick as `broken_images`."""

    def problem(path: Path) -> str:
        _open(path, _preview)
        return _too_thin(path, _open(path, _upright_size))

    return _problems(paths, problem)


def _problems(paths: Sequence[Path], check: Callable[[Path], str]) -> dict[Path, str]:
    """Return what `check` says of the files, or raises as DataError, where it is something."""

    def problem(path: Path) -> str:
        try:
            return check(path)
        except DataError as e:
            return str(e)

    # The filter is set here and not in the threads: filters belong to the whole process.
    with quiet(), ThreadPoolExecutor(_THREADS) as pool:
        reasons = zip(paths, pool.map(problem, paths), strict=True)
        return {path: reason for path, reason in reasons if reason}


def _open(source: Path | bytes, read: Callable[[Image], T]) -> T:
    import PIL.Image

    name = str(source) if isinstance(source, Path) else BYTES_NAME
    try:
        try:
            return _decoded(_opened(source), name, read)
        except ValueError:
            data = image_bytes(source)
            slim = _without_long_texts(data)
            if slim is data:
                raise
            return _decoded(io.BytesIO(slim), name, read)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"no such image: {name}") from None
    except PIL.Image.DecompressionBombError:
        raise DataError(f"{name}: more than the limit of {MAX_PIXELS} pixels") from None
    except PIL.UnidentifiedImageError:
        raise DataError(f"{name}: {_other_kind(source)}") from None
    except Exception as e:  # Pillow's decoders raise errors of many kinds on broken bytes
        raise DataError(f"{name}: broken image ({first_line(e)})") from None


def _decoded(file: Path | io.BytesIO, name: str, read: Callable[[Image], T]) -> T:
    import PIL.Image

    with PIL.Image.open(file) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError(f"{name}: {width}x{height} pixels, more than the limit of {MAX_PIXELS}")
        return read(image)


def _without_long_texts(data: bytes) -> bytes:
    """Return a PNG without the texts and the profile that are too long for Pillow to open it.

    Pillow refuses a whole picture because of them, and nothing here reads them. Shorter texts stay:
    one of them may say how the picture is turned. Other bytes are returned as they are.
    """
    from PIL import PngImagePlugin

    if not data.startswith(_PNG):
        return data
    kept = [_PNG]
    place, room = len(_PNG), float(PngImagePlugin.MAX_TEXT_MEMORY)
    while place < len(data):
        end = place + int.from_bytes(data[place : place + 4]) + 12
        kind, content = data[place + 4 : place + 8], data[place + 8 : end - 4]
        size = _text_size(kind, content, PngImagePlugin.MAX_TEXT_CHUNK) if kind in _TEXTS else 0
        if size <= room:
            room -= size
            kept.append(data[place:end])
        place = end
    slim = b"".join(kept)
    return data if len(slim) == len(data) else slim


def _text_size(kind: bytes, content: bytes, longest: int) -> float:
    """Bytes of a PNG's text once unpacked; infinity for a packed one of more than `longest`."""
    _, _, rest = content.partition(b"\0")
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] == b"\0"):
        return len(rest)
    packed = rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else rest[1:]
    unpacking = zlib.decompressobj()
    try:
        size = len(unpacking.decompress(packed, longest))
    except zlib.error:  # Pillow passes over it
        return 0
    return math.inf if unpacking.unconsumed_tail else size


def _other_kind(source: Path | bytes) -> str:
    """What is said of a file that Pillow does not know."""
    if isinstance(source, Path) and archive_of(source) is None:
        with source.open("rb") as file:
            head = file.read(_HEAD)
    else:
        head = image_bytes(source)[:_HEAD]
    if head[4:8] == b"ftyp":
        return "not an image in a supported format (perhaps HEIC): save it as JPEG or PNG"
    if head.startswith(b"version https://git-lfs"):
        return "not an image, but a Git LFS pointer: `git lfs pull` fetches the image"
    return "not an image"


def _preview(image: Image) -> Image:
    image.draft("RGB", (32, 32))
    return to_rgb(image)


def _upright_size(image: Image) -> tuple[int, int]:
    width, height = image.size
    with contextlib.suppress(Exception):  # of a TIFF, Pillow may have turned them already
        width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]  # type: ignore[attr-defined]
    return (height, width) if _orientation(image) in {5, 6, 7, 8} else (width, height)


def to_rgb(image: Image) -> Image:
    """An image in RGB, upright, of the first frame if there are more.

    Grey values of 16 bits are scaled down; Pillow alone would cut them off at white.
    """
    from PIL import ImageOps

    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
    with contextlib.suppress(Exception):  # broken EXIF data; the photo itself is whole
        image = ImageOps.exif_transpose(image)
    return image.convert("RGB")


def sendable(source: Path | bytes, longest: int | None = None) -> tuple[bytes, str]:
    """An image as bytes that any program reads, and their MIME type.

    A JPEG or PNG in grey or RGB, upright and not too large, is given as it is, a PNG without texts
    that are too long for Pillow. Others are written as JPEG where the source has lost detail before
    (JPEG, WebP), else as PNG.

    Args:
        longest: pixels that the longer side may have; larger images are scaled down.

    Raises:
        DataError: missing, not an image, cut off, or larger than MAX_PIXELS.
    """
    import PIL.Image

    data = _without_long_texts(image_bytes(source))
    image = open_image(source)
    with quiet(), PIL.Image.open(io.BytesIO(data)) as opened:
        kind = opened.format or ""
        plain = opened.mode in {"L", "RGB"} and getattr(opened, "n_frames", 1) == 1
        turned = _orientation(opened) != 1
    large = longest is not None and max(image.size) > longest
    if kind in {"JPEG", "PNG"} and plain and not turned and not large:
        return data, f"image/{kind.lower()}"
    if longest is not None and large:
        image.thumbnail((longest, longest), PIL.Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if kind in {"JPEG", "MPO", "WEBP"}:
        image.save(out, "JPEG", quality=95, subsampling=0)
        return out.getvalue(), "image/jpeg"
    image.save(out, "PNG")
    return out.getvalue(), "image/png"


def _orientation(image: Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF data; such a photo is not turned
        return 1


def _eight_bit(image: Image) -> Image:
    import numpy as np
    import PIL.Image

    values = np.asarray(image)
    top = 65535.0 if image.mode != "F" else (1.0 if values.max(initial=0) <= 1 else 255.0)
    if image.mode == "I" and values.max(initial=0) <= 255:
        top = 255.0  # 8-bit values in a 32-bit image
    small = np.empty(values.shape, np.uint8)
    rows = max(1, _STRIP // max(1, values.shape[1]))
    for start in range(0, len(values), rows):  # in double precision, a few rows at a time
        strip = values[start : start + rows].astype(np.float64) * (255.0 / top)
        small[start : start + rows] = np.clip(np.rint(np.nan_to_num(strip)), 0, 255)
    grey = PIL.Image.fromarray(small)
    grey.info.update(image.info)
    return grey


def _opened(source: Path | bytes) -> Path | io.BytesIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if archive_of(source):
        return io.BytesIO(image_bytes(source))
    if kind := irregular(source):
        raise DataError(f"{source}: broken image ({kind}, where a file is expected)")
    _check_size(source)
    return source


def image_bytes(source: Path | bytes) -> bytes:
    """The encoded bytes, for content hashes.

    Raises:
        DataError: the file cannot be read, or is larger than MAX_FILE.
    """
    if isinstance(source, bytes):
        return source
    found = archive_of(source)
    if found is not None:
        return archive(found).read(source.relative_to(found).as_posix())
    check_file(source)
    _check_size(source)
    try:
        return source.read_bytes()
    except OSError as e:
        raise DataError(f"{source} cannot be read: {e}") from None


def _check_size(path: Path) -> None:
    with contextlib.suppress(OSError):  # whoever opens it reports this
        if path.stat().st_size > MAX_FILE:
            raise DataError(f"{path}: more than the limit of {MAX_FILE} bytes for an image")


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


def kept_image(data: bytes) -> Path:
    """A file of the cache folder with these bytes, named by a hash of them."""
    name = hashlib.sha256(data).hexdigest()[:32]
    path = cache_dir("images", name[:2]) / name
    if not path.is_file():
        atomic_write(path, data)
    return path


def image_digest(path: Path) -> str | None:
    """SHA-256 of an image's bytes, hex; None if it cannot be read."""
    try:
        return hashlib.sha256(image_bytes(path)).hexdigest()
    except DataError:
        return None
