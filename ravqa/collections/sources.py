"""Which source each passage of a collection came from.

Every folder of passages has a `sources.json` if a source is known of any of them: runs of passages
that follow one another, as [source, prefix of its ids, number of passages]. The source is null if
it is not known, and the prefix is null for all but folders. Like the other files of the folder, it
never changes. A source that is a file or folder is named by its path from the collection's folder,
so that it is the same from everywhere.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ravqa.core.locations import real_path
from ravqa.core.records import Passage
from ravqa.core.stored import as_type, read_json
from ravqa.core.texts import printable
from ravqa.corpora.hub import hub_name
from ravqa.corpora.origins import Origin

FILE = "sources.json"

Stored = tuple[str | None, str | None, Annotated[int, Field(ge=1)]]


class Origins:
    """The origin of each passage of a folder, by its place in the order."""

    def __init__(self, runs: Iterable[tuple[Origin | None, int]] = ()):
        """Store the runs, in order; places after them have no known origin."""
        runs = list(runs)
        self._origins = [origin for origin, _ in runs]
        self._ends = list(itertools.accumulate(count for _, count in runs))

    @classmethod
    def read(cls, folder: Path, passages: int) -> Origins:
        """Read a folder's file.

        Raises:
            OSError: it is missing or cannot be read.
            ValueError: it is damaged, or is of another number of passages.
        """
        stored = as_type(list[Stored], read_json(folder / FILE))
        known: dict[tuple[str, str | None], Origin] = {}
        found = cls(
            (None if name is None else known.setdefault((name, prefix), Origin(name, prefix)), n)
            for name, prefix, n in stored
        )
        if found._ends[-1:] != [passages]:
            raise ValueError(f"{folder.name}/{FILE} is of another number of passages")
        return found

    def __getitem__(self, place: int) -> Origin | None:
        run = bisect.bisect_right(self._ends, place)
        return self._origins[run] if run < len(self._origins) else None

    def __iter__(self) -> Iterator[Origin]:
        """Yield the origins that occur."""
        return (origin for origin in dict.fromkeys(self._origins) if origin is not None)


class Recorder:
    """Passes passages on while they are written, and then writes the origins of all of them."""

    def __init__(self, passages: Iterable[tuple[Passage, Origin | None]]):
        self._passages = passages
        self._runs: list[tuple[Origin | None, int]] = []

    def __iter__(self) -> Iterator[Passage]:
        for passage, origin in self._passages:
            if self._runs and self._runs[-1][0] == origin:
                self._runs[-1] = origin, self._runs[-1][1] + 1
            else:
                self._runs.append((origin, 1))
            yield passage

    def write(self, folder: Path) -> None:
        """Write the folder's file, if any origin is known."""
        stored: list[Stored] = [
            (None, None, n) if origin is None else (origin.source, origin.prefix, n)
            for origin, n in self._runs
        ]
        if any(origin is not None for origin, _ in self._runs):
            (folder / FILE).write_text(json.dumps(stored), encoding="utf-8")


def stored_name(source: Path, collection: Path) -> str:
    """Return what a source is called in a collection: a path from there, or a name on the hub."""
    if hub_name(source):
        return str(source)
    place, folder = real_path(source), real_path(collection)
    with suppress(ValueError):  # on another drive
        place = Path(os.path.relpath(place, folder))
    return printable(place.as_posix())  # it may be in another encoding


def shown_name(name: str, collection: Path) -> str:
    """Return a source's name for people: a path from the current folder."""
    if not name.startswith("../"):
        return name
    place = os.path.normpath(real_path(collection) / name)
    near = os.path.relpath(place)
    return place if near.startswith("..") else near
