"""Images in zip and tar archives, read in place.

A path may lead into an archive: `DIR/val2014.zip/val2014/COCO_val2014_000000000042.jpg` is read
from the zip file in place. Zip files (stored or deflated) and plain tar files are read; a
compressed tar file cannot be, because nothing can be read from its middle.
"""

from __future__ import annotations

import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ravqa.core.errors import DataError
from ravqa.core.files import check_file

ARCHIVES = (".zip", ".tar")
MAX_BYTES = 2**28
"""Larger files in archives are refused: a small archive may unpack to more than the memory."""


_HEAD = 512  # bytes: a tar file's first header
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")
_MOST_LINKS = 8  # of links that lead to links
COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
"""Suffixes of archives that have to be unpacked."""
_BROKEN = (zipfile.BadZipFile, tarfile.TarError)


class ArchiveError(DataError):
    """An archive is broken, cut off, or of a form that cannot be read in place."""


def archive_of(path: Path) -> Path | None:
    """The archive that a path leads into, or None for a plain path."""
    return next(
        (p for p in path.parents if p.suffix.lower() in ARCHIVES and p.is_file()),
        None,
    )


def archive(path: Path) -> Archive:
    """The archive at `path`; its list of members is read again once the file has changed.

    Raises:
        ArchiveError: it is broken, cut off, or cannot be read in place.
    """
    state = path.stat()
    return _opened(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _opened(path: Path, _changed: int, _size: int) -> Archive:
    return Archive(path)


class Archive:
    """Where each image of a zip or tar file stands in it.

    Every read opens the file itself, so that threads and forked processes share no position.
    """

    def __init__(self, path: Path):
        self.path = path
        self.members: dict[str, tuple[int, ...]] = {}
        try:
            check_file(path)
            entries = _zip_entries(path) if _is_zip(path) else _tar_entries(path)
            for name, place in entries:
                clean = PurePosixPath(name.replace("\\", "/"))
                if not clean.is_absolute() and ".." not in clean.parts:
                    self.members.setdefault(clean.as_posix(), place)
        except (*_BROKEN, DataError, OSError, EOFError, ValueError) as e:
            raise ArchiveError(f"{path} is not an archive that can be read in place: {e}") from None

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


def _is_zip(path: Path) -> bool:
    """Return whether an archive is a zip file: by its first bytes, then by its suffix.

    Raises:
        ValueError: it is compressed as a whole.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(_COMPRESSED):
        raise ValueError("it is compressed as a whole: unpack it")
    if head.startswith(b"PK") or head[257:262] == b"ustar":
        return head.startswith(b"PK")
    return path.suffix.lower() == ".zip"


def _tar_entries(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and places; links lead to files of the same archive, or nowhere."""
    places: dict[str, tuple[int, ...]] = {}
    links: dict[str, str] = {}
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = posixpath.normpath(member.name)
            if member.isreg():
                yield member.name, (member.offset_data, member.size)
                places[name] = (member.offset_data, member.size)
            elif member.islnk():  # its name begins at the top of the archive
                links[name] = posixpath.normpath(member.linkname.lstrip("/"))
            elif member.issym():
                folder = posixpath.dirname(name)
                links[name] = posixpath.normpath(posixpath.join(folder, member.linkname))
            archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory
    for name in links:
        target = name
        for _ in range(_MOST_LINKS):
            if target in links and target not in places:
                target = links[target]
        if name not in places and target in places:
            yield name, places[target]


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
        raise ValueError("encrypted" if method == -1 else "compressed by an unsupported method")
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
        raise ValueError("its checksum is wrong")
    return data


def _piece(file: Any, offset: int, size: int) -> bytes:
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes, more than the limit of {MAX_BYTES}")
    file.seek(offset)
    data: bytes = file.read(size)
    if len(data) != size:
        raise ValueError("cut off")
    return data
