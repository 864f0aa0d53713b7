"""The threads that searches' kernels run on, shared by all indexes of the process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

_here = threading.local()


@cache
def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Return the number of kernel threads: the processors that this process may use.

    It is 1 for what `alone` runs.
    """
    return 1 if getattr(_here, "alone", False) else _processors()


@cache
def pool() -> ThreadPoolExecutor:
    """Return the threads."""
    return ThreadPoolExecutor(_processors(), thread_name_prefix="ravqa-index")


def alone(function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """Apply `function` to items, each on one thread, which kernels inside share with no other."""

    def one(item: _T) -> _R:
        _here.alone = True
        try:
            return function(item)
        finally:
            _here.alone = False

    return list(pool().map(one, items))


os.register_at_fork(after_in_child=pool.cache_clear)
