"""Working without warnings, also on several threads."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, such as Pillow's: of size, which is checked, and of untidy EXIF data.

    Filters belong to the whole process: of threads inside at the same time, the last to leave
    restores them. Each with `warnings.catch_warnings` would restore those of another.
    """
    with _QUIET.lock:
        _QUIET.inside += 1
        if _QUIET.inside == 1:
            _QUIET.filters.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
    try:
        yield
    finally:
        with _QUIET.lock:
            _QUIET.inside -= 1
            if _QUIET.inside == 0:
                _QUIET.filters.close()


class _Quiet:
    """The state of `quiet`: how many threads are inside, and the filters to restore."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.filters = contextlib.ExitStack()


_QUIET = _Quiet()
