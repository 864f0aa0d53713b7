"""Late interaction with faiss for `search.py`: token-level candidates, MaxSim of the best.

Every query vector finds its nearest vectors of passages in an inverted file of product-quantised
codes (fast scan). A passage gains, for each query vector, what its best one found there is above
the last one found. The passages with the greatest sums are scored on the stored vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
from search_data import DIM, SEED, Stored

_TRAINED_ON = 40  # vectors for each cell

PACKAGES = ("faiss-cpu", "faiss-gpu", "numpy")
SETTINGS = {
    f"{cells} cells, {nearest} nearest, {scored} scored": {
        "cells": cells,
        "nearest": nearest,
        "scored": scored,
    }
    for cells, nearest, scored in (
        (4, 64, 200),
        (8, 128, 500),
        (16, 256, 500),
        (32, 512, 1000),
        (64, 512, 1000),
        (64, 1024, 2000),
    )
}


class Engine:
    def __init__(self, data: Path, folder: Path, threads: int):
        faiss.omp_set_num_threads(threads)
        self.stored = Stored(data)
        self.owners = np.repeat(np.arange(len(self.stored.lengths)), self.stored.lengths)
        file = folder / "faiss.index"
        if not file.exists():
            faiss.write_index(self._build(), str(file))
        self.index = faiss.read_index(str(file))

    def _build(self) -> faiss.Index:
        vectors = self.stored.vectors
        cells = 2 ** round(np.log2(4 * np.sqrt(len(vectors))))
        index = faiss.index_factory(DIM, f"IVF{cells},PQ64x4fs", faiss.METRIC_INNER_PRODUCT)
        rng = np.random.default_rng(SEED)
        size = min(len(vectors), _TRAINED_ON * cells)
        index.train(vectors[np.sort(rng.choice(len(vectors), size, replace=False))].astype("f4"))
        for start in range(0, len(vectors), 2**18):
            index.add(vectors[start : start + 2**18].astype(np.float32))
        return index

    def search(
        self, queries: Sequence[np.ndarray], k: int, cells: int, nearest: int, scored: int
    ) -> list[np.ndarray]:
        return [self._search(query, k, cells, nearest, scored) for query in queries]

    def _search(
        self, query: np.ndarray, k: int, cells: int, nearest: int, scored: int
    ) -> np.ndarray:
        parameters = faiss.SearchParametersIVF(nprobe=cells)
        values, places = self.index.search(query, nearest, params=parameters)
        lanes, ranks = np.nonzero(places >= 0)
        owners, values = self.owners[places[lanes, ranks]], values[lanes, ranks]
        floors = np.full(len(query), np.inf, np.float32)
        np.minimum.at(floors, lanes, values)
        # A vector's finds are in order: of those of one passage, the first is the best.
        keys = lanes * len(self.stored.lengths) + owners
        first = np.empty(len(query) * len(self.stored.lengths), np.int32)
        first[keys[::-1]] = np.arange(len(keys), dtype=np.int32)[::-1]
        best = first[keys] == np.arange(len(keys))
        gains = (values - floors[lanes])[best]
        sums = np.bincount(owners[best], gains, minlength=len(self.stored.lengths))
        candidates = np.argpartition(-sums, min(scored, len(sums) - 1))[:scored]
        return self.stored.best(query, candidates, k)
