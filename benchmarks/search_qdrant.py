"""Qdrant's embedded engine for `search.py`, as ravqa's index `qdrant` uses it without a server.

The passages whose mean vector is nearest to the query's are scored by MaxSim, or all passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from search_data import DIM, Stored

from ravqa.indexes.qdrant import QdrantIndex

PACKAGES = ("qdrant-edge-py",)
SETTINGS: dict[str, dict[str, Any]] = {
    **{f"{n:,} scored": {"prefetch": n} for n in (100, 200, 500, 1000, 2000)},
    "all scored": {"prefetch": None},
}


class Engine:
    def __init__(self, data: Path, folder: Path, threads: int):
        path = folder / "index"
        if not path.exists():
            stored = Stored(data)
            ids = map(str, range(len(stored.lengths)))
            QdrantIndex.build(ids, stored, path, dim=DIM).close()
        self.index = QdrantIndex.open(path)

    def search(
        self, queries: Sequence[np.ndarray], k: int, prefetch: int | None
    ) -> list[list[int]]:
        found = self.index.search(list(queries), k, prefetch=prefetch)
        return [[int(i) for i, _ in ranking] for ranking in found]
