"""An on-disk cache of results by content key: SQLite in WAL mode, safe across processes.

Caches are disposable: damaged entries are removed with a warning and recomputed. A value is kept as
one line of JSON and, in the next line, a checksum of key and value; older versions wrote no second
line.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ravqa.core.accounts import Cost, Payer, current_account
from ravqa.core.errors import UserError
from ravqa.core.locations import cache_dir
from ravqa.core.outcomes import Failure
from ravqa.core.stored import parsed_json

T = TypeVar("T")
V = TypeVar("V")

_log = logging.getLogger(__name__)

# SQLITE_ERROR: the file has tables other than ours.
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})
_VARIABLES = 500  # keys in one query, below SQLite's limit
_STORED_AFTER_S = 0.05  # longest wait of a value that was made
_HALF = re.compile("[\ud800-\udfff]")  # of a character
_WAIT_S = 60.0
_LOOK_AGAIN_S = 0.02
_PENDING = 16  # most values that wait to be stored


@dataclass(slots=True)
class Use:
    """The duration of a piece of work, its use of stores, and its cost (see `measured`).

    Attributes:
        seconds: how long it took, or its share of the time of work that was done together.
        asked: number of values requested from the stores.
        found: how many of them were already stored.
        stores: names of the stores that were queried.
        costs: what was charged to the account, by question.
    """

    seconds: float = 0.0
    asked: int = 0
    found: int = 0
    stores: set[str] = field(default_factory=set)
    costs: dict[Payer, Cost] = field(default_factory=dict)


class SharedTime:
    """Time that pieces of work share equally, item by item, while they are under way together.

    So the shares of all items sum to the time during which anything was under way.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items = 0  # under way
        self._at = 0.0
        self._each = 0.0  # seconds that one item under way since the beginning would have had

    def change(self, items: int) -> float:
        """Begin (or end, if negative) work on items; return the share of one item until now."""
        with self._lock:
            now = time.monotonic()
            if self._items:
                self._each += (now - self._at) / self._items
            self._at = now
            self._items += items
            return self._each


@contextmanager
def measured(
    stores: Iterable[Store],
    *,
    shared: SharedTime | None = None,
    items: int = 1,
) -> Iterator[Use]:
    """Measure the time of the enclosed work, its cost, and how many values came from these stores.

    Its cost is what is charged to the account of the context meanwhile, if there is one.

    Work that other threads do meanwhile is not counted, unless they do it in a copy of this
    thread's context.

    Args:
        stores: those in which the working parts keep their results (their attribute `stores`).
        shared: is shared with other work of this kind that is under way at the same time: the
            duration is the share of this work's `items`.

    Yields:
        A `Use`, complete at the end.
    """
    use = Use()
    own = frozenset(map(id, stores))
    token = _USES.set((*_USES.get(), (own, use)))
    clock = SharedTime() if shared is None else shared
    began = clock.change(items)
    try:
        with ExitStack() as stack:
            if (account := current_account()) is not None:
                use.costs = stack.enter_context(account.booked())
            yield use
    finally:
        use.seconds = (clock.change(-items) - began) * items
        _USES.reset(token)


_USES: ContextVar[tuple[tuple[frozenset[int], Use], ...]] = ContextVar("uses", default=())
_COUNTING = threading.Lock()


class Store:
    """A table of JSON values by key, in the file `NAME.sqlite` of the cache folder."""

    def __init__(self, name: str):
        """Open or create the file.

        Raises:
            UserError: the cache folder cannot be written.
        """
        self.name = name
        self.path = cache_dir() / f"{name}.sqlite"
        self._ready = False
        self._waiting: dict[str, Any] = {}  # values to be stored
        self._writing = threading.Lock()  # held for moments only
        self._storing = threading.Lock()
        self._timer: threading.Timer | None = None
        self._do(lambda connection: None)

    def _count(self, asked: int, found: int) -> None:
        with _COUNTING:
            for stores, use in _USES.get():
                if asked and id(self) in stores:
                    use.asked += asked
                    use.found += found
                    use.stores.add(self.name)

    def _do(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Run `action` in one transaction; a damaged file is replaced by an empty one."""
        try:
            return self._once(action)
        except (sqlite3.Error, OSError) as e:
            code = getattr(
                e, "sqlite_errorcode", sqlite3.SQLITE_OK
            )  # not all of its errors have it
            if code & 0xFF not in _DAMAGED:
                raise self._unusable(e) from None
            _log.warning("the cache %s is damaged (%s): a new one is made", self.path, e)
        try:
            for end in ("", "-wal", "-shm"):
                Path(f"{self.path}{end}").unlink(missing_ok=True)
            return self._once(action)
        except (sqlite3.Error, OSError) as e:
            raise self._unusable(e) from None

    def _once(self, action: Callable[[sqlite3.Connection], T]) -> T:
        if not self.path.exists():  # SQLite would keep the group from writing, whatever the umask
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o666))
        # One short connection per call: nothing is held open across forks and threads.
        with closing(sqlite3.connect(self.path, timeout=_WAIT_S)) as connection, connection:
            # A killed process loses nothing; a power cut only the last entries.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.text_factory = bytes  # a damaged text may be no UTF-8
            if not (self._ready and self.path.is_file() and self.path.stat().st_size):
                _use_wal(connection)
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT)"
                )
                self._ready = True
            return action(connection)

    def _unusable(self, error: Exception) -> UserError:
        return UserError(
            f"the cache {self.path} cannot be used ({error}): set RAVQA_CACHE to another folder, "
            "or delete the file"
        )

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the values of the known keys; damaged values are removed and left out."""
        found: dict[str, Any] = {}
        damaged: list[str] = []
        unique = list(dict.fromkeys(keys))

        def look(connection: sqlite3.Connection) -> list[tuple[bytes, bytes]]:
            rows: list[tuple[bytes, bytes]] = []
            for start in range(0, len(unique), _VARIABLES):
                part = unique[start : start + _VARIABLES]
                marks = ",".join("?" * len(part))
                rows += connection.execute(
                    f"SELECT key, value FROM kept WHERE key IN ({marks})", part
                )
            return rows

        for raw, text in self._do(look):
            key = raw.decode()  # equal to one of `unique`
            try:
                found[key] = _value(key, text)
            except ValueError:
                damaged.append(key)
        self.drop_damaged(damaged)
        self._count(len(unique), len(found))
        return found

    def put(self, values: Mapping[str, Any]) -> None:
        """Store values; a key that is already known keeps its value."""
        rows = [(key, _text(key, value)) for key, value in values.items()]
        self._do(lambda c: c.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", rows))

    @contextmanager
    def writing(self, most: float = math.inf) -> Iterator[Callable[[str, Any], None]]:
        """Yield a function that takes keys and values as they are made.

        They are stored shortly after, together with those of other threads, and all of them at the
        end, whatever happens: if the process is killed, values that were expensive or paid for are
        not made again.

        Args:
            most: number of values that may wait to be stored, apart from those that come while
                others are being stored.
        """

        def keep(key: str, value: Any) -> None:
            with self._writing:
                self._waiting[key] = value
                full = len(self._waiting) >= most
                if self._timer is None:
                    self._timer = threading.Timer(_STORED_AFTER_S, self._write_later)
                    self._timer.daemon = True
                    self._timer.start()
            if full and self._storing.acquire(blocking=False):
                try:
                    self._store()
                finally:
                    self._storing.release()

        try:
            yield keep
        finally:
            self._write()

    def _write(self) -> None:
        """Store what waits, after what is being stored."""
        with self._storing:
            self._store()

    def _store(self) -> None:
        with self._writing:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            values, self._waiting = self._waiting, {}
        if not values:
            return
        try:
            self.put(values)
        except UserError:  # the next call tries again; other errors are a value's own
            with self._writing:
                self._waiting = {**values, **self._waiting}
            raise

    def _write_later(self) -> None:
        with suppress(Exception):  # raised at the end, where they are stored again
            self._write()

    def drop(self, keys: Iterable[str]) -> None:
        """Delete the values of these keys."""
        rows = [(key,) for key in keys]
        if rows:
            self._do(lambda c: c.executemany("DELETE FROM kept WHERE key = ?", rows))

    def drop_damaged(self, keys: Sequence[str]) -> None:
        """Delete values that cannot be read, with a warning."""
        if keys:
            _log.warning(
                "%d values in the cache %s are damaged: they are made again", len(keys), self.path
            )
            self.drop(keys)


def _text(key: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if _HALF.search(text):  # has no UTF-8 form
        text = json.dumps(value)
    return f"{text}\n{_checksum(key, text)}"


def _value(key: str, data: bytes) -> Any:
    """Return what `_text` wrote; ValueError if it was changed."""
    if not isinstance(data, bytes):
        raise ValueError("not a text")
    text, line_break, checksum = data.decode().partition("\n")
    if line_break and checksum != _checksum(key, text):
        raise ValueError("its checksum is wrong")
    return parsed_json(text)


def _checksum(key: str, text: str) -> str:
    return hashlib.blake2b(f"{key}\n{text}".encode(), digest_size=8).hexdigest()


class _Claims:
    """Keys whose values a thread is looking up or making, so that others wait for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claimed: dict[str, threading.Event] = {}

    @contextmanager
    def of(self, keys: Iterable[str]) -> Iterator[tuple[list[str], set[threading.Event]]]:
        """Claim keys in the block.

        Yields:
            The keys that no other thread has claimed; and for the others, events that are set when
            their claims are over, the values being stored if they were made.
        """
        over = threading.Event()
        with self._lock:
            own = [key for key in keys if key not in self._claimed]
            others = {self._claimed[key] for key in keys if key in self._claimed}
            self._claimed.update(dict.fromkeys(own, over))
        try:
            yield own, others
        finally:
            with self._lock:
                for key in own:
                    del self._claimed[key]
            over.set()


_CLAIMED: ContextVar[Callable[[], object] | None] = ContextVar("claimed", default=None)


@contextmanager
def claims_told(tell: Callable[[], object]) -> Iterator[None]:
    """Have `tell` called when the enclosed work has claimed values: others leave them to it."""
    token = _CLAIMED.set(tell)
    try:
        yield
    finally:
        _CLAIMED.reset(token)


_CLAIMS: defaultdict[Path, _Claims] = defaultdict(_Claims)  # of each store's file


class Memo(Generic[V]):
    """Memoized values by content key: known ones come from a `Store`, others are made and stored.

    Several threads may use it: of equal keys, one makes the value, and the others wait for it.
    A `Failure` is returned, but neither stored nor counted. Values are stored as they are made, so
    that few are lost if the process is killed.

    Attributes:
        made: how many values were made.
        stores: the store; empty if nothing is kept on disk.
    """

    def __init__(
        self,
        store: str | Store | None,
        *,
        chunk: int | None = None,
        out: Callable[[V], Any] | None = None,
        back: Callable[[Any], V | None] | None = None,
    ):
        """Open the store.

        Args:
            store: a store, or the name of one; None keeps nothing on disk. In both cases, equal
                keys in one call are made once.
            chunk: how many values are made in one go; None for all of a call.
            out, back: convert a value to JSON-able data and back. `out` returns None for a value
                that must not be stored, and `back` for one that must be made again. `back` raises
                ValueError, TypeError or KeyError on damaged data; the value is then made again.
        """
        self._store = Store(store) if isinstance(store, str) else store
        self.stores: Sequence[Store] = () if self._store is None else (self._store,)
        self._chunk = chunk
        self._out = out
        self._back = back
        self._lock = threading.Lock()
        self.made = 0

    def get(
        self,
        keys: Sequence[str],
        make: Callable[[list[int]], Iterable[tuple[int, V]]],
        progress: Callable[[int, int], object] | None = None,
    ) -> list[V]:
        """Return the value of each key, in order; if `make` fails, earlier values are kept.

        Args:
            keys: each a hash of everything that its value depends on.
            make: given positions in `keys`, yields for each its index among these positions and
                its value, in any order.
            progress: called as progress(done, total) after each chunk; counts values to be made.

        Raises:
            ValueError: not every value was made.
        """
        known: dict[str, V] = {}
        while missing := [key for key in dict.fromkeys(keys) if key not in known]:
            if self._store is None:
                self._make(keys, missing, known, make, progress)
                break
            with _CLAIMS[self._store.path].of(missing) as (own, others):
                if (tell := _CLAIMED.get()) is not None:
                    tell()
                known |= self.known(own)
                self._make(keys, [key for key in own if key not in known], known, make, progress)
            for over in others:
                over.wait()
        return [known[key] for key in keys]

    def _make(
        self,
        keys: Sequence[str],
        left: Iterable[str],
        known: dict[str, V],
        make: Callable[[list[int]], Iterable[tuple[int, V]]],
        progress: Callable[[int, int], object] | None,
    ) -> None:
        """Add the values of the keys that are left to the known ones, and store them."""
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        rows = sorted(first[key] for key in left)
        chunk = self._chunk or max(1, len(rows))
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            count = 0
            with nullcontext() if self._store is None else self._store.writing(_PENDING) as keep:
                for place, value in make(part):
                    key = keys[part[place]]
                    count += key not in known
                    known[key] = value
                    if isinstance(value, Failure):
                        continue
                    with self._lock:
                        self.made += 1
                    kept = value if self._out is None else self._out(value)
                    if keep is not None and kept is not None:
                        keep(key, kept)
            if count != len(part):
                raise ValueError(f"{len(part)} values are expected, but {count} were made")
            if progress:
                progress(start + len(part), len(rows))

    def known(self, keys: Sequence[str]) -> dict[str, V]:
        """Return the stored values of these keys; damaged ones, and those to be made again, go."""
        if self._store is None:
            return {}
        found = self._store.get(keys)
        if self._back is None:
            return found
        known: dict[str, V] = {}
        damaged, refused = [], []
        for key, data in found.items():
            try:
                value = self._back(data)
            except (ValueError, TypeError, KeyError):
                damaged.append(key)
                continue
            if value is None:
                refused.append(key)
            else:
                known[key] = value
        self._store.drop_damaged(damaged)
        self._store.drop(refused)
        return known


def _use_wal(connection: sqlite3.Connection) -> None:
    """Set WAL mode, retrying: SQLite does not wait while another process creates the file."""
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
