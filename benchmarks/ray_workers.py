"""Time the same work by one process and by workers of a Ray cluster, in one run.

    python benchmarks/ray_workers.py                        a cluster of this machine's own
    RAY_ADDRESS=HOST:PORT python benchmarks/ray_workers.py  another one

Searches and readers' calls take turns, and the median counts. What is compared is what Ray costs:
on one machine its workers have the same processors as the one process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ravqa.core.cluster import WorkerOptions, connected, encoded_on_ray
from ravqa.core.factory import part_config
from ravqa.core.settings import Part
from ravqa.corpora.corpus import Corpus
from ravqa.datasets.base import DatasetRequest, load_dataset
from ravqa.encoders import ENCODERS
from ravqa.encoders.store import corpus_embeddings
from ravqa.indexes.sharded import ShardedIndex
from ravqa.readers import READERS
from ravqa.readers.base import Prompt
from ravqa.readers.on_ray import RayReader


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(calls: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Return each call's median, in milliseconds, after one that is not counted."""
    found: dict[str, list[float]] = {way: [] for way in calls}
    for i in range(repeat + 1):
        for way, call in calls.items():
            taken = seconds(call)
            if i:
                found[way].append(taken * 1000)
    return {way: statistics.median(times) for way, times in found.items()}


def show(what: str, times: dict[str, float], unit: str) -> None:
    one, ray = times["one process"], times["Ray"]
    print(f"| {what} | {one:,.1f} {unit} | {ray:,.1f} {unit} | {ray / one:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--passages", type=int, default=512, help="to encode")
    parser.add_argument("--repeat", type=int, default=20, help="searches, and readers' calls")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.0f}, {os.cpu_count()} processors, {options.workers} workers")
    print(f"joining the cluster: {seconds(lambda: connected('this benchmark')):.1f} s")
    print("| | one process | Ray | ratio |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        search(Path(name), options.workers, options.repeat)
        answer(options.workers, options.repeat)
        encode(Path(name), options.workers, options.passages)


def search(folder: Path, workers: int, repeat: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1000, 32, 128)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    found = {}
    for way, kind in (("one process", "local"), ("Ray", "ray")):
        config = ShardedIndex.Config(shard=Part(name="exact"), shards=workers, workers=kind)
        if not ShardedIndex.built(folder / "index"):
            ids = [str(i) for i in range(len(rows))]
            ShardedIndex.build(ids, list(rows), folder / "index", dim=128, config=config)
        found[way] = ShardedIndex.open(folder / "index", config)
    for count in (1, 8):
        queries = [np.concatenate(rows[i : i + 2]) for i in range(count)]
        calls = {way: partial(index.search, queries, 20) for way, index in found.items()}
        show(f"searching 1,000 passages for {count} queries", medians(calls, repeat), "ms")


def answer(workers: int, repeat: int) -> None:
    part = Part(name="first-words")
    config = part_config(READERS, part, "reader")
    one = READERS.get(part.name)(config)
    ray = RayReader(part, config, WorkerOptions(number=workers))
    prompts = [Prompt(f"Passage: leaf {i} of a tree\nQuestion: what?\nAnswer:") for i in range(32)]
    calls = {"one process": lambda: one.generate(prompts), "Ray": lambda: ray.generate(prompts)}
    show("a reader's call with 32 prompts and no model", medians(calls, repeat), "ms")


def encode(folder: Path, workers: int, count: int) -> None:
    sample = load_dataset("okvqa", DatasetRequest(need_images=False)).corpus
    given = [passage for _, passage in zip(range(count), sample.stream(), strict=False)]
    corpus = Corpus(given)
    part = Part(name="token-bert")
    encoder = ENCODERS.get(part.name)(part_config(ENCODERS, part, "encoder"))
    stores = {}

    def run(way: str, options: WorkerOptions | None) -> None:
        with encoded_on_ray(options):
            stores[way] = corpus_embeddings(encoder, corpus, folder / way.replace(" ", "-"))

    times = {
        "one process": seconds(lambda: run("one process", None)),
        "Ray": seconds(lambda: run("Ray", WorkerOptions(number=workers))),
    }
    show(f"encoding {len(given):,} passages, models' loading included by Ray", times, "s")
    pairs = zip(*stores.values(), strict=True)
    apart = max(float(np.abs(a.astype(float) - b).max(initial=0)) for a, b in pairs)
    print(f"greatest difference of a component: {apart:.1g}")


if __name__ == "__main__":
    main()
