"""Run fast-plaid for `search_cuda.py`, in fast-plaid's own environment; prints a line of JSON.

python search_cuda_fast_plaid.py '{"data": ..., "device": "cuda", "kinds": [...], ...}'
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fast_plaid import search

SETTINGS: dict[str, dict[str, Any]] = {
    "2 probes, 1,024 scored": {"n_ivf_probe": 2, "n_full_scores": 1024},
    "default": {},  # 8 probes, 4,096 scored
    "32 probes, 8,192 scored": {"n_ivf_probe": 32, "n_full_scores": 8192},
}


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def opened(data: Path, device: str) -> tuple[Any, float | None]:
    """Return the index, and the seconds that building took if it was not there."""
    folder = data / "fast-plaid"
    there = folder.exists() and any(folder.iterdir())
    index = search.FastPlaid(index=str(folder), device=device)
    if there:
        return index, None
    lengths = np.load(data / "lengths.npy")
    stored = np.load(data / "vectors.npy", mmap_mode="r")
    passages = [
        torch.from_numpy(stored[end - n : end].astype(np.float32))
        for end, n in zip(np.cumsum(lengths), lengths, strict=True)
    ]
    start = clock(device)
    index.create(documents_embeddings=passages)
    return index, clock(device) - start


def main() -> None:
    asked = json.loads(sys.argv[1])
    data, device = Path(asked["data"]), asked["device"]
    index, seconds = opened(data, device)
    kinds: dict[str, dict[str, Any]] = {}
    for kind in asked["kinds"]:
        given = np.load(data / f"queries-{kind}.npy")[slice(*asked["queries"])]
        queries = [torch.from_numpy(q[np.any(q != 0, axis=1)]) for q in given]
        for name, options in SETTINGS.items():

            def find(some: list[torch.Tensor], options: Any = options) -> list[list[int]]:
                found = index.search(some, top_k=asked["k"], show_progress=False, **options)
                return [[int(i) for i, _ in ranking] for ranking in found]

            found = [find([query])[0] for query in queries]
            times = {}
            for size in asked["batches"]:
                endless = itertools.cycle(queries)
                calls = [
                    list(itertools.islice(endless, size))
                    for _ in range(max(3, -(-len(queries) // size)))
                ]
                find(calls[0])
                took = []
                for some in calls:
                    start = clock(device)
                    find(some)
                    took.append(clock(device) - start)
                times[str(size)] = 1e3 * statistics.median(took)
            kinds.setdefault(kind, {})[name] = {"ms": times, "found": found}
    versions = {name: metadata.version(name) for name in ("fast-plaid", "torch")}
    print(json.dumps({"build_seconds": seconds, "versions": versions, "kinds": kinds}))


if __name__ == "__main__":
    main()
