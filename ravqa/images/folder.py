"""Images of a dataset, found by name inside its folder only."""

from __future__ import annotations

import contextlib
import os
import posixpath
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from ravqa.core.errors import DataError
from ravqa.core.locations import real_path
from ravqa.images.archives import ARCHIVES, COMPRESSED, ArchiveError, archive
from ravqa.images.decode import SUFFIXES, is_image_file


def inside(root: Path, name: str) -> Path:
    """`root/name`, if `name` stays inside `root`.

    Raises:
        DataError: an absolute path, or one that climbs out with "..".
    """
    # "a/../b" stays inside, as "b".
    relative = PurePosixPath(posixpath.normpath(name.replace("\\", "/")))
    if relative.is_absolute():
        raise DataError(
            f"image path {name!r} is absolute and leaves the image folder {root}: "
            "set --dataset-option images=DIR to the folder of the images"
        )
    if ".." in relative.parts or ":" in "".join(relative.parts[:1]):
        raise DataError(f"image path {name!r} leaves the image folder {root}")
    return root / relative


class ImageFolder:
    """Finds images below a folder by the names that a dataset has for them.

    A name is looked for as it stands, then with other suffixes, then in the folders and archives
    below, where it does not count how its accents are written. Links that lead out of the folder
    are refused.
    """

    def __init__(self, root: Path):
        self.root = root
        self._real = real_path(root)
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
        wanted = tuple(map(composed, (*relative.parts[:-1], stem)))
        found = self._index.get(wanted[-1], [])
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
        # The longest common path, the very letters, a plain file before one in an archive, the
        # suffix that was named.
        order = [suffix, *SUFFIXES, ""] if suffix else [*SUFFIXES, ""]
        ranks = {
            entry: (
                -_common_end(wanted, _parts(entry)),
                _split(PurePosixPath(entry).name)[0] != stem,
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
                f"{others[0]}: set the right folder with --dataset-option images=DIR"
            )
        return self._checked(self.root / first)

    def _checked(self, path: Path) -> Path:
        if not real_path(path).is_relative_to(self._real):
            raise DataError(
                f"image path {str(path)!r} leaves the image folder {self.root} through a link: "
                "give the folder that it leads to with --dataset-option images=DIR"
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
                if name.lower().endswith(COMPRESSED):
                    self._unread.append(f"{Path(folder, name)} is compressed: unpack it")
                if name.lower().endswith(ARCHIVES):
                    try:
                        members = archive(Path(folder, name)).members
                    except ArchiveError as e:
                        self._unread.append(str(e))
                    else:
                        entries = [f"{before}{name}/{member}" for member in members]
                for entry in entries:
                    stem = composed(_split(entry.rpartition("/")[2])[0])
                    index.setdefault(stem, []).append(entry)
        return index


def composed(name: str) -> str:
    """A name with composed letters: some systems write "é" as "e" and an accent (NFC, NFD)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _split(name: str) -> tuple[str, str]:
    """Stem and lower-case suffix of an image's name; other suffixes belong to the stem."""
    stem, dot, suffix = name.rpartition(".")
    suffix = f".{suffix.lower()}"
    return (stem, suffix) if dot and stem and suffix in SUFFIXES else (name, "")


def _in_archive(entry: str) -> bool:
    return any(p.suffix.lower() in ARCHIVES for p in PurePosixPath(entry).parents)


def _parts(entry: str) -> tuple[str, ...]:
    """Folders and stem; an archive counts as a folder of its name."""
    path = PurePosixPath(composed(entry))
    folders = (PurePosixPath(part) for part in path.parts[:-1])
    return (
        *(f.stem if f.suffix.lower() in ARCHIVES else f.name for f in folders),
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
    return common > 1 and PurePosixPath(before[-1]).suffix.lower() in ARCHIVES
