"""Locks on folders: one process writes, and whoever comes second is told who does.

The lock is the file `.lock` in the folder. The operating system holds it, so that a process that is
killed lets go of it. Beside it, `.lock.owner` says who has it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ravqa.core.errors import UserError

_log = logging.getLogger(__name__)

_LOCK = ".lock"
_OWNER = ".lock.owner"
LOCK_FILES = frozenset({_LOCK, _OWNER})
"""What a lock leaves in its folder."""

_WAIT_S = 2.0  # another process may be looking, or about to end
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})


@contextmanager
def lock(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made if needed.

    On a file system without locks there is none; a warning says so.

    Args:
        what: what is in the folder, for messages ("the run").

    Raises:
        UserError: another process (or object) holds it.
        OSError: the folder or the lock cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = _acquired(folder, what)
    if held is None:
        yield
        return
    owner = folder / _OWNER
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    values = {"pid": os.getpid(), "host": platform.node(), "since": since}
    try:
        owner.write_text(json.dumps(values), encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        held.release()


def check_free(folder: Path, what: str) -> None:
    """Raise UserError if another process holds the folder's lock; nothing is made."""
    if not (folder / _LOCK).is_file():
        return
    try:
        held = _acquired(folder, what, warn=False)
    except OSError:
        return  # whoever writes there is told
    if held is not None:
        held.release()


def _acquired(folder: Path, what: str, *, warn: bool = True) -> FileLock | None:
    """The lock, held; None where the file system has none."""
    made = FileLock(folder / _LOCK, timeout=_WAIT_S, thread_local=False, fallback_to_soft=False)
    try:
        made.acquire()
    except Timeout:
        raise UserError(
            f"{what} in {folder} is being written by {_owner(folder)}: wait for its end, or choose "
            "another folder"
        ) from None
    except OSError as e:
        if e.errno not in _UNSUPPORTED:
            raise
        if warn:
            _log.warning(
                "%s cannot be locked (%s): see to it that nothing else writes there",
                folder,
                e.strerror,
            )
        return None
    return made


def _owner(folder: Path) -> str:
    """Who holds the lock, as far as that is written."""
    try:
        values = json.loads((folder / _OWNER).read_text(encoding="utf-8"))
        pid, host, since = int(values["pid"]), str(values["host"]), str(values["since"])
        since = datetime.fromisoformat(since).isoformat(" ", timespec="seconds")
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    where = "" if host == platform.node() else f" on {host!r}"
    return f"process {pid}{where} since {since}"
