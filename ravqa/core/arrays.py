"""Reading numpy's files from several threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np

_HEADERS = threading.Lock()
"""One header at a time.

numpy parses headers with `ast`, which in Python 3.11 to 3.13 may raise SystemError when several
threads parse at once (python/cpython#106905).
"""


def load_array(file: Path, mmap_mode: Literal["r", "r+", "c"] | None = None) -> Any:
    """Return the array of a .npy file, or what a .npz file contains; nothing pickled is read.

    Raises:
        OSError, ValueError, EOFError: the file is missing, or is something else.
    """
    with _HEADERS:
        try:
            return np.load(file, mmap_mode=mmap_mode)
        except SystemError:  # a thread of another library was parsing
            return np.load(file, mmap_mode=mmap_mode)
