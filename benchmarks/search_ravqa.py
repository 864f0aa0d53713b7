"""ravqa's compressed index for `search.py`, which has built it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ravqa.cli.doctor import devices
from ravqa.indexes.compressed.index import CompressedIndex

_9BIT: dict[str, dict[str, Any]] = {
    "fast, 500 candidates": {"effort": "fast", "candidates": 500},
    "fast": {"effort": "fast"},
    "default": {"effort": "default"},
    "careful": {"effort": "careful"},
    "careful, 10,000 candidates": {"effort": "careful", "candidates": 10_000},
}
_4BIT = {name: {"effort": name} for name in ("fast", "default", "careful")}

PACKAGES = ("numba", "numpy")
SETTINGS = {
    f"{storage}: {name}": {"storage": storage, **options}
    for storage, settings in (("9bit", _9BIT), ("4bit", _4BIT))
    for name, options in settings.items()
}


class Engine:
    def __init__(self, data: Path, folder: Path, threads: int):
        self.data = data
        self.indexes: dict[str, CompressedIndex] = {}

    def note(self) -> str:
        return f"kernels {devices()['kernels']}"

    def search(
        self, queries: Sequence[np.ndarray], k: int, storage: str, **options: Any
    ) -> list[list[int]]:
        if storage not in self.indexes:
            self.indexes[storage] = CompressedIndex.open(self.data / f"index-{storage}")
        found = self.indexes[storage].search(list(queries), k, **options)
        return [[int(i) for i, _ in ranking] for ranking in found]
