"""Exact MaxSim in float32 torch, with the vectors in memory: the baseline of `search.py`.

Passages are sorted by length; a block of them is padded to the longest with a passage's last
vector, which changes no maximum, and is one product. One product of all vectors with a maximum per
segment is three times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from search_data import Stored

_BLOCK = 8192  # vectors of passages in a block
_LANES = 320  # query vectors that meet a block at a time: their products fit in the cache

PACKAGES = ("torch",)
SETTINGS: dict[str, dict[str, object]] = {"float32": {}}


class Engine:
    def __init__(self, data: Path, folder: Path, threads: int):
        torch.set_num_threads(threads)
        stored = Stored(data)
        self.order = np.argsort(stored.lengths, kind="stable")
        lengths = stored.lengths[self.order]
        begins = (np.cumsum(stored.lengths) - stored.lengths)[self.order]
        self.blocks: list[torch.Tensor] = []
        """Vectors of passages in `order`, float32 [passages, vectors, DIM] each."""
        first = 0
        while first < len(lengths):
            last = first + 1
            while last < len(lengths) and (last + 1 - first) * lengths[last] <= _BLOCK:
                last += 1
            inner = np.minimum(np.arange(lengths[last - 1]), lengths[first:last, None] - 1)
            rows = stored.vectors[begins[first:last, None] + inner]
            self.blocks.append(torch.from_numpy(rows.astype(np.float32)))
            first = last

    def search(self, queries: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
        """Return the k best passages of each query; queries share every block that is read."""
        together = max(1, _LANES // max(map(len, queries)))
        groups = [queries[i : i + together] for i in range(0, len(queries), together)]
        lefts = [(torch.from_numpy(np.concatenate(g)), [len(q) for q in g]) for g in groups]
        scores = []
        for block in self.blocks:
            right = block.flatten(0, 1).T
            sums = []
            for left, counts in lefts:
                best = (left @ right).view(len(left), len(block), -1).amax(-1)
                sums += [part.sum(0) for part in best.split(counts)]
            scores.append(torch.stack(sums))
        return [
            self.order[np.argsort(-row, kind="stable")[:k]] for row in torch.cat(scores, 1).numpy()
        ]
