"""Exact MaxSim in torch over dense blocks of passages of about equal length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ravqa.core.devices import usable_device
from ravqa.indexes.base import Array

if TYPE_CHECKING:
    import torch

_BLOCK = 8192
"""Padded vectors scored at a time; with 320 query vectors their scores fit in the cache."""


def device_of(name: str) -> Any:
    """Return the torch device of that name; for "auto", CUDA if available.

    Raises:
        UserError: the device does not exist.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(usable_device(name, "index"))


def maxsim(query: torch.Tensor, vectors: torch.Tensor, lengths: Array) -> Array:
    """Return the MaxSim of one query with passages whose vectors are concatenated.

    Args:
        query: float32 [query vectors, dim].
        vectors: float32 [sum of lengths, dim], on the query's device.
        lengths: number of vectors of each passage, int64 [passages].

    Returns:
        float32 [passages]; minus infinity for a passage without vectors.
    """
    import torch

    out = np.full(len(lengths), -np.inf, dtype=np.float32)
    offsets = np.cumsum(lengths) - lengths
    order = np.argsort(lengths, kind="stable")
    start = int(np.searchsorted(lengths[order], 1))
    while start < len(order):
        # Sorting by length keeps padding small; a passage is padded with its last vector, which
        # changes no maximum.
        width = int(lengths[order[start]])
        end = start + 1
        while end < len(order):
            longest = int(lengths[order[end]])
            if (end + 1 - start) * longest > _BLOCK:
                break
            width, end = longest, end + 1
        rows = order[start:end]
        inner = np.minimum(np.arange(width), lengths[rows, None] - 1)
        index = torch.from_numpy((offsets[rows, None] + inner).ravel()).to(vectors.device)
        scores = query @ vectors.index_select(0, index).T
        best = scores.view(len(query), len(rows), width).amax(-1).sum(0)
        out[rows] = best.cpu().numpy()
        start = end
    return out
