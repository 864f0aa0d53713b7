"""fast-plaid for `search.py`, in its own environment, on the CPU.

    python -m venv FOLDER && FOLDER/bin/pip install fast-plaid numpy

It needs one exact release of torch, seldom the one in use here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fast_plaid import search
from search_data import Stored

PACKAGES = ("fast-plaid", "torch")
SETTINGS: dict[str, dict[str, Any]] = {
    "2 probes, 1,024 scored": {"n_ivf_probe": 2, "n_full_scores": 1024},
    "default": {},  # 8 probes, 4,096 scored
    "32 probes, 8,192 scored": {"n_ivf_probe": 32, "n_full_scores": 8192},
}


class Engine:
    def __init__(self, data: Path, folder: Path, threads: int):
        torch.set_num_threads(threads)
        path = folder / "index"
        built = path.exists()
        self.index = search.FastPlaid(index=str(path), device="cpu")
        if not built:
            passages = [torch.from_numpy(rows.astype(np.float32)) for rows in Stored(data)]
            self.index.create(documents_embeddings=passages)

    def search(self, queries: Sequence[np.ndarray], k: int, **options: Any) -> list[list[int]]:
        tensors = [torch.from_numpy(query) for query in queries]
        found = self.index.search(tensors, top_k=k, show_progress=False, **options)
        return [[int(i) for i, _ in ranking] for ranking in found]
