"""Locations of packaged files and caches, and helpers for every writer of files."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_dir

from ravqa.core.errors import UserError

_HERE = Path(__file__).resolve().parent.parent


def _resource_dir(name: str) -> Path:
    # A wheel holds the folder inside the package; a checkout has it next to the package.
    inside = _HERE / f"_{name}"
    return inside if inside.is_dir() else _HERE.parent / name


PIPELINES = _resource_dir("pipelines")
PROMPTS = _resource_dir("prompts")
STUDIES = _resource_dir("studies")
SAMPLE = _HERE / "datasets" / "sample"


def packaged(folder: Path, name: str) -> Path | None:
    """Return the packaged file `name` in `folder`, or None; the name cannot leave the folder."""
    path = folder / name
    return path if path.is_file() and path.resolve().parent == folder.resolve() else None


def cache_dir(*parts: str) -> Path:
    """Return a folder below the cache root, created if needed.

    The root is $RAVQA_CACHE, else the system's cache folder: on Linux $XDG_CACHE_HOME/ravqa
    or ~/.cache/ravqa.

    Raises:
        UserError: it cannot be created.
    """
    path = Path(_cache_root(), *parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(
            f"the cache folder {path} cannot be created ({e.strerror or e}): set RAVQA_CACHE to "
            "another"
        ) from None
    return path


def real_path(path: Path) -> Path:
    """Return the absolute path without symbolic links; where they form a circle, they are kept.

    `Path.resolve` raises RuntimeError there.
    """
    return Path(os.path.realpath(path))


def is_cached(path: Path) -> bool:
    """Return whether a path lies below the cache root, where nothing is a user's own file."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(_cache_root()))


def _cache_root() -> str:
    return os.environ.get("RAVQA_CACHE") or user_cache_dir("ravqa", appauthor=False)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content, as far as that is allowed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):  # rmtree would wait for a writer of a pipe
        path.unlink()


def flush_to_disk(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk, so that a power cut loses nothing."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
