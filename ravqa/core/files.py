"""Atomic writes of files and folders, and folder locks: one process writes, others learn which.

Output gets its final name only when it is complete and flushed to disk, so that neither a kill nor
a power cut leaves a partial file. A killed process leaves its temporary file; the next one that
writes the same file removes it.

A lock is the file `.lock` (in some folders `lock`). The operating system holds it and releases it
when the process is killed. Next to it, `.lock.owner` says who holds it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import flush_to_disk, is_cached

_log = logging.getLogger(__name__)

_LOCK = ".lock"
LOCK_FILES = frozenset({_LOCK, f"{_LOCK}.owner"})
"""Files that a lock leaves in its folder."""

LONGEST_LINE = 2**26
"""Most characters of a line, and bytes of a page, that are read.

Without a limit, a file without line ends would fill the memory.
"""

_LFS_POINTER = b"version https://git-lfs."
_WAIT_S = 2.0  # another process may be checking the lock, or about to exit
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)


def irregular(path: Path) -> str:
    """Return what a path leads to if it is not a file; "" for a file, and for nothing at all.

    Opening a pipe would wait for its other end, and a device may never end.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return ""  # whoever opens it reports this
    if stat.S_ISREG(mode):
        return ""
    return "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"


def check_file(path: Path) -> None:
    """Refuse a path to something that is not a file, or to one that stands for another.

    Raises:
        DataError: it is a folder, pipe, socket or device, or a pointer that Git LFS has left.
    """
    if kind := irregular(path):
        raise DataError(f"{path} is {kind}, where a file is expected")
    with suppress(OSError, ValueError), path.open("rb") as file:  # whoever opens it reports these
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise DataError(f"{path} is a Git LFS pointer: `git lfs pull` fetches the file")


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace the file's content atomically; text is written as UTF-8.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    with written_beside(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def written_beside(path: Path, *, others: bool = True) -> Iterator[Path]:
    """Yield a new, empty file to write; at the end, flush it to disk and rename it to `path`.

    Its permissions follow the umask. After an exception it is removed.

    Args:
        others: see `remove_leftovers`.
    """
    remove_leftovers(path, others=others)
    temporary, handle = _claimed(path, folder=False)
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(path)
        flush_to_disk(path.parent)  # the folder's entry holds the name
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def folder_written_beside(path: Path, *, first_wins: bool = False) -> Iterator[Path]:
    """Yield a new, empty folder to fill; at the end, flush it to disk and rename it to `path`.

    An empty folder at `path` is replaced. After an exception the new folder is removed.

    Args:
        first_wins: if another process has created the same folder meanwhile, keep that one.

    Raises:
        OSError: it cannot be created, or the folder already exists.
    """
    remove_leftovers(path)
    temporary, handle = _claimed(path, folder=True)
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                flush_to_disk(Path(folder, name))
            flush_to_disk(Path(folder))
        try:
            temporary.rename(path)
        except OSError:
            if not (first_wins and path.is_dir()):
                raise
        flush_to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def final_name(name: str) -> str | None:
    """Return the intended final name of this module's temporary file; None for other files."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else None


def _claimed(path: Path, *, folder: bool) -> tuple[Path, int]:
    """Create a temporary file or folder; return it and the descriptor that marks it as in use."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        if folder:
            temporary.mkdir()
            handle = os.open(temporary, os.O_RDONLY)
        else:
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if _marked(handle) is not False and _is_at(temporary, handle):
            return temporary, handle
        os.close(handle)  # mistaken for a leftover between the two calls, and perhaps removed


def _is_at(path: Path, handle: int) -> bool:
    """Return whether a path still leads to what a descriptor was opened for."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(handle))
    return False


def remove_leftovers(path: Path, *, others: bool = True) -> None:
    """Remove what killed processes left behind when writing `path`.

    In the cache folder, what they left behind of other files beside it is removed too.

    Args:
        others: False leaves other files alone: where several processes write by a library that
            replaces the file it is given, these no longer carry the mark of being in use.
    """
    every = others and is_cached(path)
    for name in os.listdir(path.parent):
        final = final_name(name)
        if final is None or (final != path.name and not every):
            continue
        entry = path.with_name(name)
        with suppress(OSError), _left_behind(entry) as left:
            if left and entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif left:
                entry.unlink()


def leftovers(root: Path) -> Iterator[Path]:
    """Yield the files and folders below `root` that killed processes left behind."""
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            if final_name(name) is None:
                continue
            entry = Path(folder, name)
            with _left_behind(entry) as left:
                if left:
                    yield entry
        folders[:] = [name for name in folders if final_name(name) is None]


@contextmanager
def _left_behind(entry: Path) -> Iterator[bool]:
    """Yield whether the writer of a temporary file is gone; until the end, nobody else asks."""
    try:
        # Opening a pipe or device of such a name does not wait.
        handle = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        yield _marked(handle) is True  # False: in use; None: unknown
    finally:
        os.close(handle)


def _marked(handle: int) -> bool | None:
    """Mark a temporary file as in use while the descriptor is open.

    Returns:
        False if another descriptor has marked it; None if the file system does not support locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


class LockedError(UserError):
    """Another process (or object) holds a lock; the message says which."""


@contextmanager
def lock(
    folder: Path, what: str, *, name: str = _LOCK, wait: float | None = _WAIT_S
) -> Iterator[None]:
    """Hold a lock in a folder, which is created if needed.

    On a file system without locks, nothing is locked and a warning is logged.

    Args:
        what: what the lock protects, for messages ("the run").
        name: the lock's file.
        wait: seconds to wait for another process; None for no limit.

    Raises:
        LockedError: another process (or object) holds it.
        OSError: the folder or the lock cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if wait is None:
        try:
            held = _acquired(path, what, _WAIT_S)
        except LockedError:
            _log.info("%s in %s: waiting for %s", what, folder, _owner(path))
            held = _acquired(path, what, -1)
    else:
        held = _acquired(path, what, wait)
    if held is None:
        yield
        return
    owner = _owner_file(path)
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    values = {"pid": os.getpid(), "host": platform.node(), "since": since}
    try:
        owner.unlink(missing_ok=True)  # it may be anything, such as a pipe
        owner.write_text(json.dumps(values), encoding="utf-8")
        yield
    finally:
        try:
            owner.unlink(missing_ok=True)
        finally:
            held.release()


def check_free(folder: Path, what: str) -> None:
    """Raise LockedError if another process holds the folder's lock; create nothing."""
    if not (folder / _LOCK).is_file():
        return
    try:
        held = _acquired(folder / _LOCK, what, _WAIT_S, warn=False)
    except OSError:
        return  # a later write reports it
    if held is not None:
        held.release()


def _acquired(path: Path, what: str, wait: float, *, warn: bool = True) -> FileLock | None:
    """Acquire and return the lock; None if the file system does not support locks."""
    made = FileLock(path, timeout=wait, thread_local=False, fallback_to_soft=False)
    try:
        made.acquire()
    except Timeout:
        raise LockedError(
            f"{what} in {path.parent} is being written by {_owner(path)}: wait until it ends, "
            "or choose another folder"
        ) from None
    except OSError as e:
        if e.errno not in _UNSUPPORTED:
            raise
        if warn:
            _log.warning(
                "%s cannot be locked (%s): make sure that nothing else writes there",
                path.parent,
                e.strerror,
            )
        return None
    return made


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


def _owner(path: Path) -> str:
    """Return which process holds the lock, as far as is known."""
    owner = _owner_file(path)
    try:
        if irregular(owner):
            return "another process"
        values = json.loads(owner.read_text(encoding="utf-8"))
        pid, host, since = int(values["pid"]), str(values["host"]), str(values["since"])
        since = datetime.fromisoformat(since).isoformat(" ", timespec="seconds")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
    where = "" if host == platform.node() else f" on {host!r}"
    return f"process {pid}{where} since {since}"
