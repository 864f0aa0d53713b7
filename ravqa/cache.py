"""Results kept on disk by content key: SQLite in WAL mode, safe for several processes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from ravqa.errors import UserError
from ravqa.paths import cache_dir

_VARIABLES = 500  # keys in one query, below SQLite's limit
_WAIT_S = 60.0


class Store:
    """A table of JSON values by key, in the file `NAME.sqlite` of the cache folder."""

    def __init__(self, name: str):
        """Open or make the file.

        Raises:
            UserError: the cache folder cannot be written.
        """
        self.path = cache_dir() / f"{name}.sqlite"
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT)")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # One short connection a call: nothing is held open across forks and threads.
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_S)) as connection, connection:
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
        return found

    def put(self, values: Mapping[str, Any]) -> None:
        """Keep values; a key that is known already keeps its value."""
        rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in values.items()]
        with self._connection() as connection:
            connection.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", rows)
