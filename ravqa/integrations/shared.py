"""Readers that the engines of one process share: a model that several engines use is loaded once.

Readers are shared if all of their settings are equal. A reader lives as long as an engine uses it:
the last one gives its memory back. Engines of a pipeline that you built yourself keep its reader.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from ravqa.core.factory import Session
from ravqa.readers.base import Reader

T = TypeVar("T")


class SharedReaders(Session):
    """A session that several threads may use, and that keeps nothing alive.

    Attributes:
        loads: how often readers were really made.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._turns: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self._loading = threading.RLock()

    def get(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return the reader with this key, if one is in use, or what `make` returns."""
        if kind != "reader":
            return make()
        with self._loading:  # a second thread waits for the model, and does not load it too
            found: T | None = self._alive.get(key)
            if found is None:
                self._alive[key] = found = make()
                self.loads[kind] = self.loads.get(kind, 0) + 1
            return found

    @property
    def turn(self) -> AbstractContextManager[object]:
        """A lock of its own for each engine: they share readers alone, which have theirs."""
        return threading.RLock()

    def turns(self, reader: Reader) -> threading.Lock:
        """Return the lock of those who use this reader, which need not be thread-safe.

        They keep it as long as the reader, so that no other reader is at the same address.
        """
        with self._loading:
            lock: threading.Lock = self._turns.setdefault(id(reader), threading.Lock())
            return lock


shared_readers = cache(SharedReaders)
"""Return the one session of this process."""
