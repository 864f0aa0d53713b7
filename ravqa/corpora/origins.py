"""Where passages come from, and what the ids of a folder's passages begin with.

The ids of pages and pictures are paths below the folder that was given. If several folders are
given, each id begins with its folder's name, so that `a/README.md` and `b/README.md` are two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ravqa.core.errors import DataError
from ravqa.core.texts import encodable


@dataclass(frozen=True, slots=True)
class Origin:
    """A source of passages.

    Attributes:
        source: its path or name.
        prefix: what the ids of a folder's passages begin with, "" for nothing; None for any other
            source.
    """

    source: str
    prefix: str | None = None


def folder_prefixes(
    folders: Sequence[Path], *, taken: Callable[[str], bool] = lambda _: False
) -> list[str]:
    """Return the prefix of each folder: its name and "/", such as "notes/".

    Folders with the same name get as many parts of their paths as tell them apart.

    Args:
        taken: returns whether a prefix cannot be used.

    Raises:
        DataError: a folder is given twice, or every prefix of it is taken.
    """
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    found = []
    for i, path in enumerate(paths):
        others = paths[:i] + paths[i + 1 :]
        if path in others:
            raise DataError(f"{folders[i]} is given twice")
        for length in range(1, len(path.parts)):
            prefix = _last(path, length)
            if all(_last(other, length) != prefix for other in others) and not taken(prefix):
                found.append(prefix)
                break
        else:
            raise DataError(f"{folders[i]}: ids that begin with its name exist already")
    return found


def _last(path: Path, length: int) -> str:
    """Return the last parts of a path as the beginning of ids."""
    return encodable("/".join(path.parts[1:][-length:])) + "/"
