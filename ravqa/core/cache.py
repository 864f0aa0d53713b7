"""Results kept on disk by content key: SQLite in WAL mode, safe for several processes."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ravqa.core.errors import UserError
from ravqa.core.locations import cache_dir

_VARIABLES = 500  # keys in one query, below SQLite's limit
_WAIT_S = 60.0
_LOOK_AGAIN_S = 0.02


@dataclass(slots=True)
class Use:
    """How a piece of work used the stores (see `watched`).

    Attributes:
        seconds: what the work took.
        asked: values that stores were asked for.
        found: how many of them were known already.
        saved: seconds that the known ones took when they were made, as far as that is known.
        unpriced: how many of them it is not known of.
        stores: names of the stores that were asked.
    """

    seconds: float = 0.0
    asked: int = 0
    found: int = 0
    saved: float = 0.0
    unpriced: int = 0
    stores: set[str] = field(default_factory=set)


_uses: ContextVar[tuple[Use, ...]] = ContextVar("uses", default=())


@contextmanager
def watched() -> Iterator[Use]:
    """Watches the work inside: its time, and what of it came from a store."""
    use = Use()
    token = _uses.set((*_uses.get(), use))
    began = time.monotonic()
    try:
        yield use
    finally:
        use.seconds = time.monotonic() - began
        _uses.reset(token)


class Store:
    """A table of JSON values by key, in the file `NAME.sqlite` of the cache folder.

    With each value goes the time that it took: the time since the store was last used, shared out
    among the values of one `put`. So whoever asks for values, makes those that are not known and
    puts them has their cost kept too.
    """

    def __init__(self, name: str):
        """Open or make the file.

        Raises:
            UserError: the cache folder cannot be written.
        """
        self.name = name
        self.path = cache_dir() / f"{name}.sqlite"
        self._used: float | None = None
        with self._connection() as connection:
            _use_wal(connection)
            connection.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS costs (key TEXT PRIMARY KEY, seconds REAL)"
            )

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
        saved, unpriced = 0.0, 0
        unique = list(dict.fromkeys(keys))
        with self._connection() as connection:
            for start in range(0, len(unique), _VARIABLES):
                part = unique[start : start + _VARIABLES]
                marks = ",".join("?" * len(part))
                rows = connection.execute(
                    "SELECT key, value, seconds FROM kept LEFT JOIN costs USING (key) "
                    f"WHERE key IN ({marks})",
                    part,
                )
                for key, value, seconds in rows:
                    found[key] = json.loads(value)
                    saved += seconds or 0.0
                    unpriced += seconds is None
        for use in _uses.get():
            use.asked += len(unique)
            use.found += len(found)
            use.saved += saved
            use.unpriced += unpriced
            use.stores.add(self.name)
        self._used = time.monotonic()
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
        costs = []
        if self._used is not None and values:
            each = (time.monotonic() - self._used) / len(values)
            costs = [(key, each) for key in values]
        with self._connection() as connection:
            connection.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", rows)
            connection.executemany("INSERT OR IGNORE INTO costs VALUES (?, ?)", costs)
        self._used = time.monotonic()

    def drop(self, keys: Iterable[str]) -> None:
        """Forget the values of these keys."""
        rows = [(key,) for key in keys]
        with self._connection() as connection:
            connection.executemany("DELETE FROM kept WHERE key = ?", rows)
            connection.executemany("DELETE FROM costs WHERE key = ?", rows)


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
