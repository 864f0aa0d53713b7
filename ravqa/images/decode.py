"""Images of a dataset: found inside its folder only, checked before work starts, opened safely.

A path may lead into an archive: `DIR/val2014.zip/val2014/COCO_val2014_000000000042.jpg` is read
from the zip file in place. Zip files (stored or deflated) and plain tar files are read; a
compressed tar file cannot be, because nothing can be read from its middle.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from ravqa.core.errors import DataError
from ravqa.core.files import atomic_write
from ravqa.core.locations import cache_dir
from ravqa.core.settings import fingerprint

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

_THREADS = 4
MAX_PIXELS = 100_000_000
"""Larger images are refused: a decompression bomb needs more memory than any real photo."""
MAX_BYTES = 2**28
"""Larger files in archives are refused, for the same reason."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".jfif", ".jpe", ".jif", ".avif"),
)
"""Suffixes of images, the likeliest first; upper and lower case are the same."""
_ARCHIVES = (".zip", ".tar")
_ORIENTATION = 0x0112  # EXIF

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))  # PNG chunks: texts, the colour profile
_HEAD = 32  # bytes of a file that say what it is
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|II\*\0|MM\0\*|BM.{4}\0{4}"
    rb"|.{4}ftypavi[fs]",
    re.DOTALL,
)

BLACK = b"P4\n336 336\n" + b"\xff" * (336 // 8 * 336)
"""A black image of 336 x 336 pixels, as bytes: what M2KR's text-only queries are encoded with."""


class ArchiveError(DataError):
    """An archive is broken, cut off, or of a form that cannot be read in place."""


def inside(root: Path, name: str) -> Path:
    """`root/name`, if `name` stays inside `root`.

    Raises:
        DataError: an absolute path, or one that climbs out with "..".
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute():
        raise DataError(
            f"image path {name!r} is absolute and leaves the image folder {root}: "
            "--dataset-option images=DIR names the folder that images are in"
        )
    if ".." in relative.parts or ":" in "".join(relative.parts[:1]):
        raise DataError(f"image path {name!r} leaves the image folder {root}")
    return root / relative


class ImageFolder:
    """Finds images below a folder by the names that a dataset has for them.

    A name is looked for as it stands, then with other suffixes, then in the folders and archives
    below. Links that lead out of the folder are refused.
    """

    def __init__(self, root: Path):
        self.root = root
        self._real = root.resolve()
        self._unread: list[str] = []  # archives that cannot be read, and why

    def _relative(self, name: str) -> Path:
        """The name below the folder, also of an absolute path that leads into it."""
        for root in (self.root.absolute(), self._real):
            if Path(name).is_relative_to(root):
                name = Path(name).relative_to(root).as_posix()
        return inside(self.root, name).relative_to(self.root)

    def path(self, name: str, *, by_stem: bool = False) -> Path:
        """The image called `name`, or the path where it should be.

        Raises:
            DataError: as `find`.
        """
        return self.find(name, by_stem=by_stem) or self.root / self._relative(name)

    def look(self, name: str, *, by_stem: bool = False) -> tuple[Path, str]:
        """As `path`, and why the image cannot be had if it may be in an archive that is broken.

        Raises:
            DataError: the path leaves the folder, or several files could be meant.
        """
        try:
            return self.path(name, by_stem=by_stem), ""
        except ArchiveError as e:
            return self.root / self._relative(name), str(e)

    def find(self, name: str, *, by_stem: bool = False) -> Path | None:
        """The image called `name`, or None.

        Args:
            name: path relative to the folder, with or without suffix; folders may stand before it
                on the disk, or its own first folders may be missing there.
            by_stem: the file's name alone identifies the image, whatever folder it is in.

        Raises:
            DataError: the path leaves the folder, or several files could be meant.
            ArchiveError: it is not found, and may be in an archive that cannot be read.
        """
        relative = self._relative(name)
        stem, suffix = _split(relative.name)
        if not stem:
            return None
        suffixes = (relative.name[len(stem) :], *SUFFIXES[:3])
        for path in (self.root / relative.with_name(stem + s) for s in dict.fromkeys(suffixes)):
            with contextlib.suppress(OSError, ValueError):  # a name that no file system allows
                if path.is_file() and is_image_file(self._checked(path)):
                    return path
        wanted = (*relative.parts[:-1], stem)
        found = self._index.get(stem, [])
        if not by_stem:
            found = [entry for entry in found if _same_image(wanted, entry)]
        # Suffixes of images come before content.
        found = [e for e in found if _split(e)[1]] or [
            e for e in found if is_image_file(self._checked(self.root / e))
        ]
        if not found:
            if self._unread:
                raise ArchiveError(f"no image {name!r} below {self.root}: {self._unread[0]}")
            return None
        # The longest common path, a plain file before one in an archive, the suffix that was named.
        order = [suffix, *SUFFIXES, ""] if suffix else [*SUFFIXES, ""]
        ranks = {
            entry: (
                -_common_end(wanted, _parts(entry)),
                _in_archive(entry),
                order.index(_split(entry)[1]),
            )
            for entry in found
        }
        best = min(ranks.values())
        first, *others = sorted(entry for entry in found if ranks[entry] == best)
        if others:
            raise DataError(
                f"{len(others) + 1} files below {self.root} could be the image {name!r}: {first}, "
                f"{others[0]}: name the right folder with --dataset-option images=DIR"
            )
        return self._checked(self.root / first)

    def _checked(self, path: Path) -> Path:
        if not path.resolve().is_relative_to(self._real):
            raise DataError(
                f"image path {str(path)!r} leaves the image folder {self.root} through a link: "
                "name the folder that it leads to with --dataset-option images=DIR"
            )
        return path

    @cached_property
    def _index(self) -> dict[str, list[str]]:
        """Relative paths by stem, of everything below the folder; made when first needed."""
        index: dict[str, list[str]] = {}
        for folder, subfolders, names in os.walk(self.root):
            subfolders.sort()
            below = Path(folder).relative_to(self.root).as_posix()
            before = "" if below == "." else below + "/"
            for name in sorted(names):
                entries = [before + name]
                if name.lower().endswith(_ARCHIVES):
                    try:
                        members = _archive(Path(folder, name)).members
                    except ArchiveError as e:
                        self._unread.append(str(e))
                    else:
                        entries = [f"{before}{name}/{member}" for member in members]
                for entry in entries:
                    index.setdefault(_split(entry.rpartition("/")[2])[0], []).append(entry)
        return index


def _split(name: str) -> tuple[str, str]:
    """Stem and lower-case suffix of an image's name; other suffixes belong to the stem."""
    stem, dot, suffix = name.rpartition(".")
    suffix = f".{suffix.lower()}"
    return (stem, suffix) if dot and stem and suffix in SUFFIXES else (name, "")


def _in_archive(entry: str) -> bool:
    return any(p.suffix.lower() in _ARCHIVES for p in PurePosixPath(entry).parents)


def _parts(entry: str) -> tuple[str, ...]:
    """Folders and stem; an archive counts as a folder of its name."""
    path = PurePosixPath(entry)
    folders = (PurePosixPath(part) for part in path.parts[:-1])
    return (
        *(f.stem if f.suffix.lower() in _ARCHIVES else f.name for f in folders),
        _split(path.name)[0],
    )


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """Number of equal parts at the end."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _same_image(wanted: Sequence[str], entry: str) -> bool:
    """Whether one path ends with the other, or with the folder and name inside an archive."""
    parts = _parts(entry)
    common = _common_end(wanted, parts)
    if common == min(len(wanted), len(parts)):
        return True
    before = PurePosixPath(entry).parts[: len(parts) - common]
    return common > 1 and PurePosixPath(before[-1]).suffix.lower() in _ARCHIVES


def is_image(data: bytes) -> bool:
    """Whether bytes begin as those of an image that is read."""
    return _MAGIC.match(data) is not None


def is_image_file(path: Path) -> bool:
    """Whether a file is an image by its suffix, or by its first bytes where the suffix is none."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        archive = _archive_of(path)
        if archive is not None:
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
        try:
            _open(path, _preview)
        except DataError as e:
            return str(e)
        return ""

    # The filter is set here and not in the threads: filters belong to the whole process.
    with quiet(), ThreadPoolExecutor(_THREADS) as pool:
        reasons = zip(paths, pool.map(problem, paths), strict=True)
        return {path: reason for path, reason in reasons if reason}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings: of size, which is checked, and of untidy EXIF data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(source: Path | bytes, read: Callable[[Image], T]) -> T:
    import PIL.Image

    name = str(source) if isinstance(source, Path) else "image given as bytes"
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
        raise DataError(f"{name}: broken image ({e or type(e).__name__})") from None


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
    head = image_bytes(source)[:_HEAD]
    if head[4:8] == b"ftyp":
        return "not an image in a form that is read (HEIC or the like): save it as JPEG or PNG"
    if head.startswith(b"version https://git-lfs"):
        return "not an image, but a Git LFS pointer: `git lfs pull` fetches the image"
    return "not an image"


def _preview(image: Image) -> Image:
    image.draft("RGB", (32, 32))
    return to_rgb(image)


def _upright_size(image: Image) -> tuple[int, int]:
    from PIL.ExifTags import Base

    width, height = image.size
    turned = False
    with contextlib.suppress(Exception):  # broken EXIF data, as in `to_rgb`
        turned = image.getexif().get(Base.Orientation, 1) in {5, 6, 7, 8}
    return (height, width) if turned else (width, height)


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

    values = np.asarray(image).astype(np.float64)
    top = 65535.0 if image.mode != "F" else (1.0 if values.max(initial=0) <= 1 else 255.0)
    if image.mode == "I" and values.max(initial=0) <= 255:
        top = 255.0  # 8-bit values in a 32-bit image
    scaled = np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8)
    grey = PIL.Image.fromarray(scaled)
    grey.info.update(image.info)
    return grey


def _opened(source: Path | bytes) -> Path | io.BytesIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return io.BytesIO(image_bytes(source)) if _archive_of(source) else source


def image_bytes(source: Path | bytes) -> bytes:
    """The encoded bytes, for content hashes.

    Raises:
        DataError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return source
    archive = _archive_of(source)
    if archive is not None:
        return _archive(archive).read(source.relative_to(archive).as_posix())
    try:
        return source.read_bytes()
    except OSError as e:
        raise DataError(f"{source} cannot be read: {e}") from None


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


def _archive_of(path: Path) -> Path | None:
    """The archive that a path leads into, or None for a plain path."""
    return next(
        (p for p in path.parents if p.suffix.lower() in _ARCHIVES and p.is_file()),
        None,
    )


def _archive(path: Path) -> _Archive:
    state = path.stat()
    return _open_archive(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _open_archive(path: Path, _changed: int, _size: int) -> _Archive:
    return _Archive(path)


class _Archive:
    """Where each image of a zip or tar file stands in it.

    Every read opens the file itself, so that threads and forked processes share no position.
    """

    def __init__(self, path: Path):
        self.path = path
        self.members: dict[str, tuple[int, ...]] = {}
        try:
            entries = _zip_entries(path) if path.suffix.lower() == ".zip" else _tar_entries(path)
            for name, place in entries:
                clean = PurePosixPath(name.replace("\\", "/"))
                if not clean.is_absolute() and ".." not in clean.parts:
                    self.members.setdefault(clean.as_posix(), place)
        except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError) as e:
            raise ArchiveError(f"{path} is no archive that can be read in place: {e}") from None

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            DataError: there is none, it is too large, encrypted, or broken.
        """
        place = self.members.get(name)
        where = f"{self.path}/{name}"
        if place is None:
            raise DataError(f"no such image: {where}")
        try:
            with self.path.open("rb") as file:
                return _read_zip(file, place) if len(place) > 2 else _read_tar(file, place)
        except (OSError, ValueError, zlib.error) as e:
            raise DataError(f"{where}: broken image ({e})") from None


def _tar_entries(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            if member.isreg():
                yield member.name, (member.offset_data, member.size)
            archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory


def _zip_entries(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield (
                    info.filename,
                    (
                        info.header_offset,
                        info.file_size,
                        info.compress_size,
                        info.compress_type if not info.flag_bits & 1 else -1,
                        info.CRC,
                    ),
                )


def _read_tar(file: Any, place: tuple[int, ...]) -> bytes:
    offset, size = place
    return _piece(file, offset, size)


def _read_zip(file: Any, place: tuple[int, ...]) -> bytes:
    offset, size, packed_size, method, check = place
    if method not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError("encrypted" if method == -1 else "packed by an unusual method")
    header = _piece(file, offset, 30)  # a local header; its name and extra field have own lengths
    if header[:4] != b"PK\x03\x04":
        raise ValueError("no zip header where one should be")
    start = offset + 30 + int.from_bytes(header[26:28], "little")
    start += int.from_bytes(header[28:30], "little")
    data = _piece(file, start, packed_size)
    if method == zipfile.ZIP_DEFLATED:
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes, more than the limit of {MAX_BYTES}")
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    if len(data) != size or zlib.crc32(data) != check:
        raise ValueError("its check sum is wrong")
    return data


def _piece(file: Any, offset: int, size: int) -> bytes:
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes, more than the limit of {MAX_BYTES}")
    file.seek(offset)
    data: bytes = file.read(size)
    if len(data) != size:
        raise ValueError("cut off")
    return data
