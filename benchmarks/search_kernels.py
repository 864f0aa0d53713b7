"""Time each stage of a search by the compiled kernels and by numba's, in one run.

    python benchmarks/search.py                                  makes data and an index
    python benchmarks/search_kernels.py runs/search-benchmark/10000
    taskset -c 0 python benchmarks/search_kernels.py ...         the same on one thread

A stage is repeated on the same passages, in turns by each way, and the least processor time of all
threads counts: other work on the machine disturbs it little. What is computed is the same for both,
so that ratios say what the kernels are worth; `whole` is a search from beginning to end.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import search_data

from ravqa.indexes.compressed import index as search
from ravqa.indexes.compressed import native
from ravqa.indexes.compressed.index import CompressedIndex

KINDS = ("image-q320", "noise-q320", "image-q113", "image-q32")
WAYS = ("numba", "native")
QUERY = 35  # the first 30 were used for tuning
K, SCORED = 100, 150


def least(calls: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Return the least processor time of each call, in milliseconds."""
    found = dict.fromkeys(calls, np.inf)
    for _ in range(repeat):
        for way, call in calls.items():
            start = time.process_time()
            call()
            found[way] = min(found[way], (time.process_time() - start) * 1000)
    return found


def stages(indexes: dict[str, CompressedIndex], query: np.ndarray, repeat: int) -> dict[str, Any]:
    """Return each stage's times by way; the passages of a stage are those that numba chooses."""
    index = indexes["numba"]
    state, count = index._state, len(index._state.alive)
    lanes, near = search._sampled(len(query)), int(K + search._NEAR * search._growth(count))
    with index._prepared(state, query) as found:
        seen, mean = index._scan(state, found)
        guesses = seen + np.float32(search._MEAN) * mean
        first = search._best(guesses, search.default_candidates(count, len(query)))
        bounds, _ = index._refined(state, found, first, search._MARGIN, lanes)
        second = first[search._best(bounds, near)]
        bounds, _ = index._refined(state, found, second, search._WIDE)
        last = second[np.argsort(-bounds)[:SCORED]]

    def tables(way: str) -> None:
        with indexes[way]._prepared(indexes[way]._state, query):
            pass

    def stage(name: str, *arguments: Any) -> dict[str, float]:
        def call(way: str) -> Callable[[], Any]:
            opened = indexes[way]
            return lambda: getattr(opened, name)(opened._state, prepared[way], *arguments)

        return least({way: call(way) for way in WAYS}, repeat)

    times = {"tables": least({way: lambda way=way: tables(way) for way in WAYS}, repeat)}
    held = {way: indexes[way]._prepared(indexes[way]._state, query) for way in WAYS}
    prepared = {way: held[way].__enter__() for way in WAYS}
    times["scan"] = stage("_scan")
    if lanes < len(query):
        times[f"{len(first)} refined by {lanes} vectors"] = stage(
            "_refined", first, search._MARGIN, lanes
        )
    times[f"{len(second)} refined"] = stage("_refined", second, search._WIDE)
    times[f"{len(last)} scored"] = stage("_scores", last)
    for way in reversed(WAYS):
        held[way].__exit__(None, None, None)
    whole = {way: lambda way=way: indexes[way].search([query], K) for way in WAYS}
    return times | {"whole": least(whole, repeat)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="data of search.py")
    parser.add_argument("--storage", choices=["9bit", "4bit"], default="9bit")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--repeat", type=int, default=15)
    args = parser.parse_args()
    indexes = {
        way: CompressedIndex.open(
            args.folder / f"index-{args.storage}", CompressedIndex.Config(kernels=way)
        )
        for way in WAYS
    }
    state = indexes["numba"]._state
    print(
        f"{len(state.alive)} passages, {len(state.shared.centers)} centroids, {native.threads()} "
        f"threads, {native.SETS[native.best_set()]}, load {os.getloadavg()[0]:.1f}"
    )
    print("\n| queries (vectors) | stage | numba, ms | native, ms | ratio |\n|---|---|---|---|---|")
    for kind in args.kinds:
        query = search_data.queries(args.folder, kind)[QUERY]
        for name, times in stages(indexes, query, args.repeat).items():
            numba, compiled = times["numba"], times["native"]
            row = f"{kind} ({len(query)}) | {name} | {numba:.2f} | {compiled:.2f}"
            print(f"| {row} | {numba / compiled:.1f} |", flush=True)


if __name__ == "__main__":
    main()
