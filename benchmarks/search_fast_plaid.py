"""Run fast-plaid on the data of `benchmarks/search.py`, in its own environment.

    python -m venv FOLDER && FOLDER/bin/pip install fast-plaid numpy

It needs one exact release of torch, seldom the one in use here, so `search.py` runs this file with
the interpreter that `--fast-plaid` names. It builds an index, searches query by query and prints
JSON.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fast_plaid import search

SETTINGS = {
    "fast": {"n_ivf_probe": 2, "n_full_scores": 1024},
    "default": {},
    "wide": {"n_ivf_probe": 32, "n_full_scores": 8192},
}


def main() -> None:
    data, first, count, threads = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    torch.set_num_threads(threads)
    lengths = np.load(data / "lengths.npy")
    ends = np.cumsum(lengths)
    stored = np.load(data / "vectors.npy", mmap_mode="r")
    folder = data / "fast-plaid"
    index = search.FastPlaid(index=str(folder), device="cpu")
    seconds = None
    if not folder.exists() or not any(folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
        passages = [
            torch.from_numpy(stored[end - n : end].astype(np.float32))
            for end, n in zip(ends, lengths, strict=True)
        ]
        begin = time.perf_counter()
        index.create(documents_embeddings=passages)
        seconds = time.perf_counter() - begin
    out = {"build_seconds": seconds, "kinds": {}}
    for kind in sys.argv[5:]:
        queries = np.load(data / f"queries-{kind}.npy")[first : first + count]
        live = [torch.from_numpy(q[np.any(q != 0, axis=1)])[None] for q in queries]
        for name, options in SETTINGS.items():
            index.search(live[0], top_k=100, **options)
            times, found = [], []
            for query in live:
                begin = time.perf_counter()
                [hits] = index.search(query, top_k=100, **options)
                times.append(time.perf_counter() - begin)
                found.append([int(i) for i, _ in hits])
            median = statistics.median(times)
            out["kinds"].setdefault(kind, {})[name] = {"median_ms": median * 1e3, "found": found}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
