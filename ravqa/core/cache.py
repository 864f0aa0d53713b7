"""Results kept on disk by content key: SQLite in WAL mode, safe for several processes."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ravqa.core.errors import UserError
from ravqa.core.locations import cache_dir

_VARIABLES = 500  # keys in one query, below SQLite's limit
_WAIT_S = 60.0
_LOOK_AGAIN_S = 0.02


@dataclass(slots=True)
class Use:
    """How long a piece of work took, and how it used its stores (see `measured`).

    Attributes:
        seconds: how long it took.
        asked: values that stores were asked for.
        found: how many of them were known already.
        stores: names of the stores that were asked.
    """

    seconds: float = 0.0
    asked: int = 0
    found: int = 0
    stores: set[str] = field(default_factory=set)


@contextmanager
def measured(stores: Iterable[Store]) -> Iterator[Use]:
    """Measure the work inside: its time, and what of it came from these stores.

    What other threads ask the same `Store` objects for meanwhile is counted too.

    Args:
        stores: those that the parts at work keep their results in (their attribute `stores`).

    Yields:
        The use, which is filled in at the end.
    """
    use = Use()
    own = {id(store): store for store in stores}.values()
    before = [store.counts for store in own]
    began = time.monotonic()
    try:
        yield use
    finally:
        use.seconds = time.monotonic() - began
        for store, (asked, found) in zip(own, before, strict=True):
            now = store.counts
            if now[0] > asked:
                use.asked += now[0] - asked
                use.found += now[1] - found
                use.stores.add(store.name)


class Store:
    """A table of JSON values by key, in the file `NAME.sqlite` of the cache folder."""

    def __init__(self, name: str):
        """Open or make the file.

        Raises:
            UserError: the cache folder cannot be written.
        """
        self.name = name
        self.path = cache_dir() / f"{name}.sqlite"
        self._asked = 0
        self._found = 0
        self._counting = threading.Lock()
        with self._connection() as connection:
            _use_wal(connection)
            connection.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT)")

    @property
    def counts(self) -> tuple[int, int]:
        """How many values this object was asked for so far, and how many of them it found."""
        with self._counting:
            return self._asked, self._found

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # One short connection a call: nothing is held open across forks and threads.
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_S)) as connection, connection:
                # A killed process loses nothing; a power cut the last entries, to be made again.
                connection.execute("PRAGMA synchronous=NORMAL")
                yield connection
        except sqlite3.Error as e:
            raise UserError(
                f"the cache {self.path} cannot be used ({e}): set RAVQA_CACHE to another folder, "
                "or delete the file"
            ) from None

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values of those keys that are known."""
        found: dict[str, Any] = {}
        unique = list(dict.fromkeys(keys))
        with self._connection() as connection:
            for start in range(0, len(unique), _VARIABLES):
                part = unique[start : start + _VARIABLES]
                marks = ",".join("?" * len(part))
                rows = connection.execute(
                    f"SELECT key, value FROM kept WHERE key IN ({marks})", part
                )
                found.update((key, json.loads(value)) for key, value in rows)
        with self._counting:
            self._asked += len(unique)
            self._found += len(found)
        return found

    def get_or_make(
        self, keys: Sequence[str], make: Callable[[list[int]], Sequence[Any]]
    ) -> list[Any]:
        """The value of each key, in order; what is not known is made, and kept.

        Args:
            make: gives the values for the positions in `keys` that it is given; of equal keys it
                is given one.
        """
        known = self.get(keys)
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        if new:
            rows = sorted(new.values())
            made = {keys[i]: value for i, value in zip(rows, make(rows), strict=True)}
            self.put(made)
            known.update(made)
        return [known[key] for key in keys]

    def put(self, values: Mapping[str, Any]) -> None:
        """Keep values; a key that is known already keeps its value."""
        rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in values.items()]
        with self._connection() as connection:
            connection.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", rows)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget the values of these keys."""
        rows = [(key,) for key in keys]
        with self._connection() as connection:
            connection.executemany("DELETE FROM kept WHERE key = ?", rows)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Set the file's mode, which SQLite does not wait for where another process is making it."""
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as e:
            if "locked" not in str(e) or time.monotonic() > until:
                raise
            time.sleep(_LOOK_AGAIN_S)
        else:
            return
