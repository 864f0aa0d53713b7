"""An index folder: immutable segments, and a manifest that says which of them are in use.

    index/
      manifest.json     generation, settings, segments, every file's size and checksum
      lock              held by the only process that writes
      segment-000001/   a segment: `ids.json` and the arrays of the index's kind
      segment-000001/gone-3.npy  which of its passages were deleted, as of generation 3
      shared-000002/    what segments share (a codec)

Files never change once the manifest names them. A change writes new files, flushes them to disk,
and renames a new manifest over the old one: a failure before the rename leaves the old state, one
after it the new state. The next writer removes what no manifest names. Readers keep the files that
they have opened, so they see one state until they refresh.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field

from ravqa.core.errors import DamagedError, UserError
from ravqa.core.files import LockedError, atomic_write, lock, remove_leftovers
from ravqa.core.locations import flush_to_disk
from ravqa.core.stored import as_type, read_json
from ravqa.indexes.base import Array

FORMAT = 5
MANIFEST = "manifest.json"
_LOCK = "lock"
SPOOL = "spool.new"
"""A writer's scratch file; the next writer removes one left by a killed writer."""
_BLOCK = 2**22
_DAY_S = 24 * 60 * 60.0
_OWN_FOLDER = re.compile(r"(segment|shared)-\d{6}")
_OWN_FILE = re.compile(rf"{_OWN_FOLDER.pattern}/[\w-]+\.\w+")


_Count = Annotated[int, Field(ge=0)]
_CHECKED = ConfigDict(extra="forbid")  # of what `as_type` reads back


@dataclass(frozen=True)
class SegmentEntry:
    """A segment as recorded in the manifest.

    Attributes:
        gone: the file of deletions, if there are any.
        fit: how well the shared data fits this segment's vectors, for kinds that measure it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CHECKED

    name: str
    passages: _Count
    vectors: _Count
    gone: str | None = None
    deleted: _Count = 0
    fit: float | None = None


@dataclass(frozen=True)
class Manifest:
    """The state of an index.

    Attributes:
        kind: the index's kind; no other kind can open it.
        fingerprint: what the vectors depend on (encoder and corpus), "" if unknown.
        settings: options that were fixed when the index was built.
        files: [bytes, BLAKE2b checksum] of every file, by its path in the folder.
        numbers: the last numbers given to a segment and to a shared folder.
        attached: data that the index's owner commits with it; never read here.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CHECKED

    kind: str
    dim: _Count
    fingerprint: str = ""
    generation: _Count = 0
    settings: dict[str, Any] = field(default_factory=dict)
    segments: tuple[SegmentEntry, ...] = ()
    files: dict[str, tuple[_Count, str]] = field(default_factory=dict)
    numbers: _Count = 0
    attached: dict[str, Any] = field(default_factory=dict)

    @property
    def passages(self) -> int:
        """Number of passages that are not deleted."""
        return sum(s.passages - s.deleted for s in self.segments)

    @property
    def vectors(self) -> int:
        """Number of stored vectors, including those of deleted passages."""
        return sum(s.vectors for s in self.segments)


def damaged(path: Path, what: str) -> DamagedError:
    """Return the error for an index that cannot be used."""
    return DamagedError(
        f"the index in {path} is damaged: {what}; delete the folder and build it again"
    )


def exists(path: Path) -> bool:
    """Return whether `path` holds a complete index."""
    return (path / MANIFEST).is_file()


def read_manifest(path: Path) -> Manifest:
    """Return the current state of the index in `path`.

    Raises:
        UserError: no index exists.
        DamagedError: the manifest cannot be read, was changed, or has another format.
    """
    try:
        values = read_json(path / MANIFEST)
        check_format(values["format"], FORMAT, f"the index in {path}")
        body = values["index"]
        if values["checksum"] != _checksum(body):
            raise damaged(path, f"{MANIFEST} was changed")
        manifest = as_type(Manifest, body)
    except FileNotFoundError:
        raise UserError(f"no index in {path}") from None
    except (ValueError, KeyError, TypeError) as e:
        raise damaged(path, f"{MANIFEST} cannot be read ({e})") from None
    if other := next(_outside(manifest), None):
        raise damaged(path, f"{MANIFEST} refers to {other!r}")
    return manifest


def check_format(found: Any, readable: int, what: str) -> None:
    """Check the format of what is read back.

    Raises:
        DamagedError: it is another number.
        TypeError: it is not a number.
    """
    if type(found) is not int:
        raise TypeError(f"format {found!r:.40}")
    if found != readable:
        raise DamagedError(
            f"{what} has format {found}, but this version reads {readable}: build it again"
        )


def _outside(manifest: Manifest) -> Iterator[str]:
    """Yield names that do not belong to an index's own files; they could lead out of its folder."""
    folders = [s.name for s in manifest.segments]
    if "shared" in manifest.settings:
        folders.append(manifest.settings["shared"])
    yield from (str(name) for name in folders if not _OWN_FOLDER.fullmatch(str(name)))
    yield from (name for name in manifest.files if not _OWN_FILE.fullmatch(name))
    yield from (s.gone for s in manifest.segments if s.gone and s.gone not in manifest.files)


def check_files(path: Path, manifest: Manifest) -> None:
    """Raise DamagedError if a file is missing or has another size."""
    for name, (size, _) in manifest.files.items():
        if fault := _size_fault(path, name, size):
            raise damaged(path, fault)


def content_fault(path: Path, manifest: Manifest, name: str) -> str | None:
    """Return what is wrong with a file's content, which is read whole; None if nothing is."""
    if name not in manifest.files:
        return f"{MANIFEST} does not list {name}"
    size, digest = manifest.files[name]
    if fault := _size_fault(path, name, size):
        return fault
    changed = file_checksum(path / name) != digest
    return f"{name} was changed: its checksum is wrong" if changed else None


def _size_fault(path: Path, name: str, size: int) -> str | None:
    """Return what is wrong with a file, as far as can be told without reading it."""
    try:
        found = (path / name).stat()
    except OSError:
        return f"{name} is missing"
    if not S_ISREG(found.st_mode):
        return f"{name} is not a regular file"
    return None if found.st_size == size else f"{name} has {found.st_size} bytes instead of {size}"


def faults(path: Path, manifest: Manifest) -> list[str]:
    """Return the result of `verify`: a line for each file that is missing or was changed."""
    found = (content_fault(path, manifest, name) for name in manifest.files)
    return [fault for fault in found if fault is not None]


class Writer:
    """The only changer of an index: made by `writing`, commits once or not at all."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest
        self._files = dict(manifest.files)
        self._number = manifest.numbers

    def new_folder(self, prefix: Literal["segment", "shared"]) -> str:
        """Create a new, empty folder in the index and return its name."""
        self._number += 1
        name = f"{prefix}-{self._number:06d}"
        (self.path / name).mkdir()
        return name

    def seal(self, folder: str) -> None:
        """Flush the files of `folder` to disk and record their checksums."""
        for file in sorted((self.path / folder).iterdir()):
            self._note(f"{folder}/{file.name}")
        flush_to_disk(self.path / folder)

    def _note(self, name: str) -> None:
        file = self.path / name
        flush_to_disk(file)
        self._files[name] = (file.stat().st_size, file_checksum(file))

    def mark_deleted(self, segment: SegmentEntry, gone: Array) -> SegmentEntry:
        """Return the segment with `gone`, bool [passages], as its deletions."""
        name = f"{segment.name}/gone-{self.manifest.generation + 1}.npy"
        np.save(self.path / name, np.packbits(gone))
        self._note(name)
        flush_to_disk(self.path / segment.name)
        return replace(segment, gone=name, deleted=int(gone.sum()))

    def commit(self, **changes: Any) -> Manifest:
        """Make the changed manifest the index's state, and remove what it does not name.

        Args:
            changes: fields of `Manifest`.
        """
        new = replace(
            self.manifest, generation=self.manifest.generation + 1, numbers=self._number, **changes
        )
        folders = {s.name for s in new.segments} | {str(new.settings.get("shared", ""))}
        gone = {s.gone for s in new.segments}
        files = {
            name: value
            for name, value in self._files.items()
            if name.split("/")[0] in folders and ("/gone-" not in name or name in gone)
        }
        new = replace(new, files=files)
        body = asdict(new)
        text = json.dumps({"format": FORMAT, "checksum": _checksum(body), "index": body})
        atomic_write(self.path / MANIFEST, text)
        self.manifest = new
        _sweep(self.path, new)
        return new


def sole_writer(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of the index in `path`; a process that dies releases it.

    Raises:
        UserError: another process (or object) holds it.
    """
    return lock(path, "the index", name=_LOCK, wait=0)


@contextlib.contextmanager
def writing(path: Path, start: Manifest | None = None) -> Iterator[Writer]:
    """Hold the index's lock while changing the index.

    Args:
        start: the empty state of an index to be created; None changes the existing one.

    Raises:
        UserError: another process (or object) is writing; or an index already exists (with
            `start`), or does not exist (without).
    """
    if start is None:
        read_manifest(path)  # else a wrong path would become a folder
    path.mkdir(parents=True, exist_ok=True)
    with sole_writer(path):
        if start is None:
            manifest = read_manifest(path)
        elif exists(path):
            raise UserError(f"{path} already has an index")
        else:
            manifest = start
        _sweep(path, manifest)
        writer = Writer(path, manifest)
        try:
            yield writer
        except BaseException:
            # The state on disk decides: the error may have come after the rename.
            _sweep(path, read_manifest(path) if exists(path) else manifest)
            raise


def _sweep(path: Path, manifest: Manifest) -> None:
    """Remove what the manifest does not name: leftovers of interrupted writers."""
    for name in (f"{MANIFEST}.new", SPOOL):  # older versions wrote the first
        (path / name).unlink(missing_ok=True)
    remove_leftovers(path / MANIFEST)
    for entry in path.iterdir():
        if not _OWN_FOLDER.fullmatch(entry.name):  # not created by an index
            continue
        kept = {name for name in manifest.files if name.startswith(f"{entry.name}/")}
        if not kept:
            shutil.rmtree(entry)
            continue
        for file in entry.iterdir():
            if f"{entry.name}/{file.name}" not in kept:
                file.unlink()


def remove_half_built(folder: Path) -> None:
    """Remove the indexes in a folder that killed processes began to build, a day or more ago.

    Nothing is removed that a process is writing, or that has a file of another kind.
    """
    for path in folder.iterdir():
        with contextlib.suppress(OSError, LockedError):
            if exists(path) or not _is_old(path):
                continue
            with sole_writer(path):
                if not exists(path):
                    shutil.rmtree(path)


def _is_old(path: Path) -> bool:
    """Return whether a folder holds files of an index alone, all of them a day old or older."""
    own = (_OWN_FOLDER.pattern, re.escape(_LOCK), re.escape(f"{_LOCK}.owner"), re.escape(SPOOL))
    names = re.compile("|".join((*own, rf"\.{re.escape(MANIFEST)}\.[0-9a-f]{{8}}\.part")))
    entries = [*path.iterdir()]
    if not entries or not all(names.fullmatch(entry.name) for entry in entries):
        return False
    every = itertools.chain([path], path.rglob("*"))
    return max(entry.lstat().st_mtime for entry in every) < time.time() - _DAY_S


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()


def file_checksum(file: Path) -> str:
    """Return the BLAKE2b checksum of a file's bytes, 128 bits, hex."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
