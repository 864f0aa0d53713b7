"""The threads that searches' kernels run on, shared by all indexes of the process."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache


@cache
def threads() -> int:
    """Return the number of kernel threads: the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def pool() -> ThreadPoolExecutor:
    """Return the threads."""
    return ThreadPoolExecutor(threads(), thread_name_prefix="ravqa-index")


os.register_at_fork(after_in_child=pool.cache_clear)
