"""TACHIOM for `search.py`, in its own environment.

    pip install --only-binary=:all: --target FOLDER tachiom

or FOLDER/bin/python of a virtual environment. Where pip says that no wheel fits, an older C library
may do all the same: `--no-deps --platform manylinux_2_39_x86_64`.

A search of one query runs on one thread. The scores are those of its product quantiser; for the
settings `rescored`, this file ranks its best passages by the stored vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tachiom
from search_data import Stored

_SAMPLE = 2**17
"""Vectors that its product quantisers, of 256 codes each, learn from; by default ten million."""
_EFFORTS: dict[str, dict[str, Any]] = {
    "10 centroids, 200 scored": {"k_centroids": 10, "ef_search": 20, "k_docs_to_score": 200},
    "default": {},  # 20 centroids, 500 scored
    "40 centroids, 1,000 scored": {"k_centroids": 40, "ef_search": 60, "k_docs_to_score": 1000},
    "80 centroids, 2,000 scored": {
        "k_centroids": 80,
        "ef_search": 120,
        "k_docs_to_score": 2000,
        "alpha": None,
    },
}

PACKAGES = ("tachiom", "numpy")
SETTINGS = {
    **_EFFORTS,
    **{f"rescored: {name}": {**options, "best": 300} for name, options in _EFFORTS.items()},
}


class Engine:
    def __init__(self, data: Path, folder: Path, threads: int):
        self.threads = threads
        self.stored = Stored(data)
        file = folder / "tachiom.bin"
        if not file.exists():
            if not (data / "tokens.npy").exists():
                raise FileNotFoundError(f"{data} has no tokens.npy: remove it to make it again")
            names = ("vectors.npy", "tokens.npy", "lengths.npy")
            paths = [str(data / name) for name in names]
            tachiom.Tachiom.build(*paths, pq_sample_size=_SAMPLE).save(str(file))
        self.index = tachiom.Tachiom.load(str(file))

    def search(
        self, queries: Sequence[np.ndarray], k: int, best: int = 0, **options: Any
    ) -> list[np.ndarray]:
        if len(queries) == 1:
            rows = [self.index.search(queries[0], max(k, best), **options)[1]]
        else:
            bounds = np.cumsum([0, *map(len, queries)]).astype(np.uint64)
            _, rows = self.index.batch_search(
                np.concatenate(queries),
                len(queries),
                max(k, best),
                offsets=bounds,
                num_threads=self.threads,
                **options,
            )
        found = [row[row < len(self.stored.lengths)].astype(np.int64) for row in rows]
        if not best:
            return found
        return [self.stored.best(q, some, k) for q, some in zip(queries, found, strict=True)]
