"""The compressed index's inner loops, compiled by numba when first used and cached on disk.

Each works on a range of passages and releases the GIL; `run` spreads ranges over one pool of
threads, also for matrix products, for which numpy's own threads are switched off meanwhile.
Passages are runs of vectors that share a centroid; see `ravqa.indexes.compressed.index`.
"""

# numba's decorator has no types.
# mypy: disallow-untyped-decorators=False
# Nested max() of two values compiles to vector instructions; so do plain loops.
# ruff: noqa: PLW3301, PLR0912, PLR0915

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, TypeVar

import numba
import numpy as np
import threadpoolctl

from ravqa.indexes.base import Array
from ravqa.indexes.compressed.threads import pool, threads

_T = TypeVar("_T")
_R = TypeVar("_R")

_NONE = np.float32(-1e30)
_TOGETHER = 64  # vectors rounded at a time
_compiled = numba.njit(nogil=True, fastmath=True, cache=True, boundscheck=False)


class _NumpyThreads:
    """numpy's threads for matrix products, which can be switched off for a while."""

    def __init__(self) -> None:
        found = threadpoolctl.ThreadpoolController()
        own = [lib.filepath for lib in found.lib_controllers if "numpy" in lib.filepath]
        self._libraries = found.select(filepath=own)
        self._lock = threading.Lock()
        self._users = 0
        self._limit: Any = None

    @contextmanager
    def off(self) -> Iterator[None]:
        """Compute products on the calling thread; the last user to leave gives the threads back."""
        with self._lock:
            if not self._users:
                self._limit = self._libraries.limit(limits=1)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._limit.restore_original_limits()


_numpy_threads = cache(_NumpyThreads)
os.register_at_fork(after_in_child=_numpy_threads.cache_clear)


def lone_products() -> AbstractContextManager[None]:
    """Make numpy compute matrix products on the calling thread, in the whole process, inside.

    Its own threads would keep waiting for work for a while, on the processors that the kernels
    need, which costs as much as the kernels.
    """
    return _numpy_threads().off()


def multiply(first: int, last: int, left: Array, right: Array, out: Array) -> None:
    """Compute rows `first` to `last` of a matrix product, for `run`, inside `lone_products`."""
    np.matmul(left[first:last], right, out=out[first:last])


def run(kernel: Callable[..., Any], count: int, *arguments: Any, grain: int = 32) -> None:
    """Call `kernel(first, last, *arguments)` over ranges that make up 0..count, in parallel."""
    parts = min(4 * threads(), -(-count // grain))
    if parts <= 1 or threads() == 1:
        kernel(0, count, *arguments)
        return
    bounds = [count * i // parts for i in range(parts + 1)]
    futures = [pool().submit(kernel, a, b, *arguments) for a, b in itertools.pairwise(bounds)]
    for future in futures:
        future.result()


def in_order(function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """Yield `function` of each item, in order; as many are computed at a time as processors."""
    with lone_products(), ThreadPoolExecutor(threads(), "ravqa-build") as pool:
        waiting: deque[Future[_R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@_compiled
def greatest(
    first: int, last: int, table: Array, lift: Array, norms: Array, low: Array, out: Array
) -> None:
    """Find each row's greatest score [centroids, query vectors], shifted as in `quantise`."""
    for c in range(first, last):
        best = _NONE
        for j in range(table.shape[1]):
            best = max(best, table[c, j] + lift[c] * norms[j] - low[j])
        out[c] = best


@_compiled
def quantise(
    first: int,
    last: int,
    table: Array,
    lift: Array,
    norms: Array,
    low: Array,
    scale: float,
    out: Array,
) -> None:
    """Convert scores [centroids, query vectors] to bytes, clipped to 0..255.

    (score + lift of the centroid x norm of the vector - low of the vector) x scale.
    """
    for c in range(first, last):
        for j in range(table.shape[1]):
            value = (table[c, j] + lift[c] * norms[j] - low[j]) * scale
            out[c, j] = np.uint8(min(max(value, np.float32(0)), np.float32(255)))


@_compiled
def scan(
    first: int, last: int, table: Array, centroids: Array, run_offsets: Array, out: Array
) -> None:
    """Compute approximate MaxSim of passages: per query vector the best centroid, summed.

    Args:
        table: uint8 [centroids, query vectors].
        centroids: the runs' centroids, uint16 [runs].
        run_offsets: int64 [passages + 1].
        out: int32 [passages], written.
    """
    lanes = table.shape[1]
    best = np.zeros(lanes, np.uint8)
    for d in range(first, last):
        begin, end = run_offsets[d], run_offsets[d + 1]
        best[:] = 0
        i = begin
        # Eight rows at a time: `best` is read and written once for them.
        while i + 8 <= end:
            r0, r1 = table[centroids[i]], table[centroids[i + 1]]
            r2, r3 = table[centroids[i + 2]], table[centroids[i + 3]]
            r4, r5 = table[centroids[i + 4]], table[centroids[i + 5]]
            r6, r7 = table[centroids[i + 6]], table[centroids[i + 7]]
            for j in range(lanes):
                a = max(max(r0[j], r1[j]), max(r2[j], r3[j]))
                b = max(max(r4[j], r5[j]), max(r6[j], r7[j]))
                best[j] = max(best[j], max(a, b))
            i += 8
        while i < end:
            row = table[centroids[i]]
            for j in range(lanes):
                best[j] = max(best[j], row[j])
            i += 1
        total = np.int32(0)
        for j in range(lanes):
            total += best[j]
        out[d] = total


@_compiled
def refine(
    first: int,
    last: int,
    docs: Array,
    table: Array,
    margin: int,
    exact: Array,
    query: Array,
    centroids: Array,
    run_offsets: Array,
    run_starts: Array,
    offsets: Array,
    residuals: Array,
    scales: Array,
    unit: float,
    four: bool,
    width: int,
    out: Array,
    coarse: Array,
) -> None:
    """Compute a lower bound of MaxSim: per query vector, exact products with the best runs only.

    Args:
        docs: int64, passages to examine; `first` and `last` are positions in it.
        table: uint8 [centroids, at least width]; width: columns of it to use, a multiple of 8.
        margin: runs count whose entry in `table` is less than this below the query vector's best.
        exact: float32 [centroids, query vectors], products of centroids and query vectors.
        query: float32 [query vectors, dim], the first ones; further columns of the table are 0.
        run_starts: uint16 [runs], each run's first vector, counted within its passage.
        offsets: int64 [passages + 1], where each passage's vectors begin.
        residuals, scales: see `codec.Coded`; four: whether residuals have four bits.
        unit: of the scales.
        out: float32 [docs], written; coarse: int32 [docs], written: the result of `scan`.
    """
    lanes, dim = query.shape
    half = dim // 2
    floor = np.empty(width, np.uint8)
    near = np.empty(width, np.uint8)
    near8, floor8 = near.view(np.uint64), floor.view(np.uint64)
    value = np.empty(lanes, np.float32)
    chosen = np.empty(width + 1, np.int64)
    rest = np.empty(dim, np.float32)
    for x in range(first, last):
        d = docs[x]
        begin, end = run_offsets[d], run_offsets[d + 1]
        floor[:] = 0
        i = begin
        while i + 4 <= end:
            r0, r1 = table[centroids[i]], table[centroids[i + 1]]
            r2, r3 = table[centroids[i + 2]], table[centroids[i + 3]]
            for j in range(width):
                floor[j] = max(floor[j], max(max(r0[j], r1[j]), max(r2[j], r3[j])))
            i += 4
        while i < end:
            row = table[centroids[i]]
            for j in range(width):
                floor[j] = max(floor[j], row[j])
            i += 1
        seen = np.int32(0)
        for j in range(width):
            seen += floor[j]
        coarse[x] = seen
        for j in range(width):
            floor[j] = np.uint8(max(np.int16(floor[j]) - np.int16(margin + 1), np.int16(0)))
        value[:] = _NONE
        for i in range(begin, end):
            row = table[centroids[i]]
            # Above the floor is where this maximum differs from it; a condition in the loop would
            # keep the compiler from using vector instructions.
            for j in range(width):
                near[j] = max(row[j], floor[j])
            count = 0
            for eight in range(width // 8):
                if near8[eight] != floor8[eight]:
                    for j in range(8 * eight, 8 * eight + 8):
                        chosen[count] = j  # without a branch, which would be mispredicted
                        count += near[j] != floor[j]
            if count == 0:
                continue
            products = exact[centroids[i]]
            after = offsets[d] + run_starts[i + 1] if i + 1 < end else offsets[d + 1]
            for t in range(offsets[d] + run_starts[i], after):
                residual, scale = residuals[t], np.float32(scales[t] * unit)
                if four:
                    for h in range(half):
                        rest[h] = scale * (np.float32(residual[h] & 15) - np.float32(7.5))
                    for h in range(half):
                        rest[half + h] = scale * (np.float32(residual[h] >> 4) - np.float32(7.5))
                else:
                    for h in range(dim):
                        rest[h] = scale * np.float32(residual[h])
                for c in range(count):
                    j = chosen[c]
                    vector = query[j]
                    dot = np.float32(0)
                    for h in range(dim):
                        dot += vector[h] * rest[h]
                    value[j] = max(value[j], products[j] + dot)
        total = np.float32(0)
        for j in range(lanes):
            if value[j] == _NONE:  # nothing of the passage is above the mean of all centroids
                for i in range(begin, end):
                    value[j] = max(value[j], exact[centroids[i], j])
            total += value[j]
        out[x] = total


@_compiled
def best_sums(first: int, last: int, scores: Array, begins: Array, out: Array) -> None:
    """Compute MaxSim of passages from their vectors' products: per query vector the best, summed.

    Args:
        scores: float32 [vectors, query vectors], the passages' vectors concatenated.
        begins: int64 [passages + 1], where each passage's vectors begin; every passage has some.
        out: float32 [passages], written.
    """
    lanes = scores.shape[1]
    best = np.empty(lanes, np.float32)
    for d in range(first, last):
        best[:] = scores[begins[d]]
        for t in range(begins[d] + 1, begins[d + 1]):
            row = scores[t]
            for j in range(lanes):
                best[j] = max(best[j], row[j])
        total = np.float32(0)
        for j in range(lanes):
            total += best[j]
        out[d] = total


@_compiled
def round_rows(
    values: Array,
    feedback: Array,
    limits: Array,
    units: Array,
    offset: float,
    out: Array,
    costs: Array,
) -> None:
    """Round vectors as `codec._round` does.

    Args:
        values: float32 [n, dim]; out: float32 [n, dim], written; costs: float32 [n], written.
        feedback, limits, units, offset: as there.
    """
    dim = values.shape[1]
    # Component by component for several vectors at a time, which vector instructions then share.
    left = np.empty((dim, _TOGETHER), np.float32)
    error = np.empty(_TOGETHER, np.float32)
    shift = np.float32(offset)
    for first in range(0, len(values), _TOGETHER):
        some = min(_TOGETHER, len(values) - first)
        cost = np.zeros(_TOGETHER, np.float32)
        left[:] = 0
        for x in range(some):
            for h in range(dim):
                left[h, x] = values[first + x, h]
        for h in range(dim):
            for x in range(_TOGETHER):
                kept = (np.rint(left[h, x] / units[h] - shift) + shift) * units[h]
                kept = min(max(kept, -limits[h]), limits[h])
                error[x] = left[h, x] - kept
                left[h, x] = kept
                cost[x] += feedback[h, h] * error[x] * error[x]
            for j in range(h + 1, dim):
                share = feedback[h, j]
                for x in range(_TOGETHER):
                    left[j, x] -= share * error[x]
        for x in range(some):
            costs[first + x] = cost[x]
            for h in range(dim):
                out[first + x, h] = left[h, x]


@_compiled
def decode(
    first: int,
    last: int,
    rows: Array,
    codes: Array,
    centers: Array,
    residuals: Array,
    fine: Array,
    scales: Array,
    unit: float,
    four: bool,
    out: Array,
) -> None:
    """Decode stored vectors: the centroid plus the scaled residual.

    Args:
        rows: int64, which vectors; codes: uint16, the centroid of each of them.
        centers: float32 [centroids, dim].
        residuals, fine, scales, unit, four: as in `refine` and `codec.Coded`.
        out: float32 [rows, dim], written.
    """
    dim = centers.shape[1]
    half = dim // 2
    width = fine.shape[1]
    for x in range(first, last):
        center, residual = centers[codes[x]], residuals[rows[x]]
        scale = np.float32(scales[rows[x]] * unit)
        to = out[x]
        if four:
            for h in range(half):
                low = np.float32(residual[h] & 15) - np.float32(7.5)
                high = np.float32(residual[h] >> 4) - np.float32(7.5)
                to[h] = center[h] + scale * low
                to[half + h] = center[half + h] + scale * high
        else:
            for h in range(dim):
                to[h] = center[h] + scale * np.float32(residual[h])
        if width:
            bits = fine[rows[x]]
            step = scale * np.float32(0.5)
            less = scale * np.float32(0.25 if four else 0)
            for k in range(8):
                for b in range(min(width, dim - k * width)):
                    to[k * width + b] += step * np.float32((bits[b] >> k) & 1) - less
