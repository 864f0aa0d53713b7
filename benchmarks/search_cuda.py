"""Compare the compressed index on a GPU with exact MaxSim on the same GPU: times, quality, memory.

    python benchmarks/search_cuda.py                                  10,000 passages of real text
    python benchmarks/search_cuda.py --passages 1000000               grown by synthetic passages
    python benchmarks/search_cuda.py --fast-plaid PYTHON              beside fast-plaid, see below
    python benchmarks/search_cuda.py --device cpu --passages 500      only whether it runs

`search_data.py` says which data are searched; `--data` names a folder of it that exists. The
baseline multiplies all vectors, float32 on the device and sorted by length, with the queries of a
batch. A call's time runs from queries in main memory to results there, with the device idle before
and after: medians of as many calls as all queries make, at least three. Queries 0 to 29 of each
kind were used for tuning and are left out; small sets are repeated to fill a batch.

`--fast-plaid` names the interpreter of an environment with fast-plaid, which needs one exact
release of torch (`python -m venv FOLDER && FOLDER/bin/pip install fast-plaid numpy`). It searches
the same data on the same device, by `search_cuda_fast_plaid.py`.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ravqa.core.errors import UserError
from ravqa.indexes.compressed.index import CompressedIndex
from ravqa.indexes.maxsim import device_of

KINDS = ("image-q320", "noise-q320", "text-q320", "image-q113", "image-q32")
TUNED_ON = 30
EFFORTS = {"9bit": ("fast", "default", "careful"), "4bit": ("default",), "float16": ("default",)}
K = 100
BLOCK = {"cpu": 2**22, "cuda": 2**28}  # bytes of the baseline's products at a time


class Exact:
    """The baseline: float32 vectors on the device, sorted by length, in blocks padded a little."""

    def __init__(self, data: Path, device: torch.device):
        lengths = np.load(data / "lengths.npy")
        stored = np.load(data / "vectors.npy", mmap_mode="r")
        begins = np.cumsum(lengths) - lengths
        self.order = np.argsort(lengths, kind="stable")
        self.lengths = lengths[self.order]
        self.begins = np.cumsum(self.lengths) - self.lengths
        self.vectors = torch.empty(stored.shape, device=device)
        at = 0
        for some in np.array_split(self.order, max(1, len(self.order) // 1024)):
            rows = np.concatenate([stored[begins[i] : begins[i] + lengths[i]] for i in some])
            self.vectors[at : at + len(rows)] = torch.from_numpy(rows).to(device).float()
            at += len(rows)

    def search(self, queries: Sequence[np.ndarray]) -> list[list[int]]:
        device = self.vectors.device
        stacked = torch.from_numpy(np.concatenate(queries)).to(device)
        bounds = [0, *itertools.accumulate(map(len, queries))]
        scores = torch.empty((len(queries), len(self.lengths)), device=device)
        size = max(1, BLOCK[device.type] // (4 * len(stacked)))
        first = 0
        while first < len(self.lengths):
            start = first
            first += 1
            first += bisect.bisect_right(
                range(first, len(self.lengths)),
                size,
                key=lambda i, start=start: (i + 1 - start) * int(self.lengths[i]),
            )
            begin, width = int(self.begins[start]), int(self.lengths[first - 1])
            end = int(self.begins[first - 1]) + width
            block = self.vectors[begin:end]
            if self.lengths[start] != width:
                steps = np.minimum(np.arange(width), self.lengths[start:first, None] - 1)
                places = torch.from_numpy((self.begins[start:first, None] - begin + steps).ravel())
                block = block.index_select(0, places.to(device))
            best = (block @ stacked.T).view(first - start, width, -1).amax(1)
            for i, (a, b) in enumerate(itertools.pairwise(bounds)):
                scores[i, start:first] = best[:, a:b].sum(1)
        found = scores.topk(min(K, scores.shape[1])).indices.cpu().numpy()
        return [self.order[row].tolist() for row in found]


def waited(device: torch.device) -> float:
    """Return the time when the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(device: torch.device, call: Callable[[], Any]) -> tuple[float, Any]:
    start = waited(device)
    result = call()
    return waited(device) - start, result


def batches(queries: Sequence[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """Return batches that use every query, the first ones again if they do not fill the last."""
    endless = itertools.cycle(queries)
    count = max(3, -(-len(queries) // size))
    return [list(itertools.islice(endless, size)) for _ in range(count)]


def measure(
    device: torch.device,
    queries: Sequence[np.ndarray],
    sizes: Sequence[int],
    search: Callable[[Sequence[np.ndarray]], list[list[int]]],
) -> tuple[dict[str, float], list[list[int]]]:
    """Return a call's median time in ms for each size of batch, and each query's ranking."""
    found = [search([query])[0] for query in queries]  # this also warms up
    times = {}
    for size in sizes:
        calls = batches(queries, size)
        search(calls[0])
        times[str(size)] = 1e3 * statistics.median(
            timed(device, lambda some=some: search(some))[0] for some in calls
        )
    return times, found


def quality(found: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> dict[str, float]:
    pairs = list(zip(found, truth, strict=True))
    return {
        f"at_{depth}": statistics.mean(
            len({*a[:depth]} & {*b[:depth]}) / len(b[:depth]) for a, b in pairs
        )
        for depth in (10, K)
    }


def opened(data: Path, storage: str, device: str, gib: float | None) -> CompressedIndex:
    """Return the index of the data, which is built if it is not there."""
    path = data / f"index-{storage}"
    config = CompressedIndex.Config(storage=storage, kernels="torch", device=device, device_gib=gib)
    if not CompressedIndex.built(path):
        lengths = np.load(data / "lengths.npy")
        vectors = np.load(data / "vectors.npy", mmap_mode="r")
        ends = np.cumsum(lengths)
        passages = (vectors[end - n : end] for end, n in zip(ends, lengths, strict=True))
        built = CompressedIndex.Config(storage=storage, device=device)
        ids = map(str, range(len(lengths)))
        CompressedIndex.build(ids, passages, path, dim=vectors.shape[1], config=built)
    return CompressedIndex(path, config)


def loaded(index: CompressedIndex, query: np.ndarray, device: torch.device) -> dict[str, float]:
    """Search once; return what it leaves on the device, in GiB, and the seconds that it takes."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    seconds, _ = timed(device, lambda: index.search([query], 1))
    after = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return {"gib": (after - before) / 2**30, "first_search_seconds": seconds}


def fast_plaid(args: argparse.Namespace, data: Path, truths: dict[str, Any]) -> dict[str, Any]:
    """Return times and quality by kind and setting, or why there are none."""
    if args.fast_plaid is None:
        return {"skipped": "no --fast-plaid"}
    script = Path(__file__).with_name("search_cuda_fast_plaid.py")
    asked = {
        "data": str(data),
        "device": args.device,
        "kinds": list(truths),
        "queries": [TUNED_ON, TUNED_ON + args.queries],
        "batches": args.batches,
        "k": K,
    }
    run = subprocess.run(
        [str(args.fast_plaid), str(script), json.dumps(asked)],
        check=False,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        return {"skipped": (run.stderr.strip() or f"exit code {run.returncode}").splitlines()[-1]}
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    for kind, settings in found["kinds"].items():
        for values in settings.values():
            values["quality"] = quality(values.pop("found"), truths[kind])
    return found


def machine(device: torch.device) -> str:
    """Return the device's name and torch's version, which figures must carry."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{name}, torch {torch.__version__}"


def shown(console: Console, kind: str, rows: dict[str, Any], sizes: Sequence[int]) -> None:
    columns = [f"ms for {n}" for n in sizes] + [f"/s at {n}" for n in sizes]
    table = Table(kind, *columns, "overlap@10", f"recall@{K}")
    for name, row in rows.items():
        times = [row["ms"][str(n)] for n in sizes]
        rates = [1e3 * n / ms for n, ms in zip(sizes, times, strict=True)]
        found = row.get("quality", {"at_10": 1, f"at_{K}": 1})
        table.add_row(
            name,
            *(f"{ms:.2f}" for ms in times),
            *(f"{rate:.0f}" for rate in rates),
            *(f"{share:.3f}" for share in found.values()),
        )
    console.print(table)


def searched(
    args: argparse.Namespace,
    device: torch.device,
    data: Path,
    storage: str,
    every: dict[str, list[np.ndarray]],
    truths: dict[str, list[list[int]]],
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Return what the index takes on the device, and for each kind of query a row per effort."""
    index = opened(data, storage, args.device, args.device_gib)
    taken = loaded(index, every[args.kinds[0]][0], device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rows: dict[str, dict[str, Any]] = {}
    for kind, effort in itertools.product(every, EFFORTS[storage]):

        def search(some: Sequence[np.ndarray], effort: str = effort) -> list[list[int]]:
            return [[int(i) for i, _ in r] for r in index.search(some, K, effort=effort)]

        times, found = measure(device, every[kind], args.batches, search)
        row = {"ms": times, "quality": quality(found, truths[kind])}
        rows.setdefault(kind, {})[f"{storage} {effort}"] = row
    if device.type == "cuda":
        taken["greatest_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return taken, rows


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Search on a GPU against exact MaxSim there.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--real", type=int, default=10_000, help="number of real ones at most")
    parser.add_argument("--text", type=Path, help="JSON lines with title and text")
    parser.add_argument("--folder", type=Path, default=Path("runs/search-benchmark"))
    parser.add_argument("--data", type=Path, help="a folder of data that exists, instead")
    parser.add_argument("--queries", type=int, default=64, help="queries per kind, at most 70")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--storages", nargs="+", choices=EFFORTS, default=list(EFFORTS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--device-gib", type=float, help="the index's setting device_gib")
    parser.add_argument("--fast-plaid", type=Path, metavar="PYTHON", help="with fast-plaid")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    try:
        device = device_of(args.device)
    except UserError as e:
        print(f"not run: {e}", file=sys.stderr)
        sys.exit(2)
    console = Console(width=130)
    data = args.data
    if data is None:
        import search_data

        real = min(args.real, args.passages)
        data = args.folder / f"{real}"
        search_data.make(data, real, args.text)
        if args.passages != real:
            search_data.grow(data, args.folder / f"{args.passages}", args.passages)
            data = args.folder / f"{args.passages}"

    exact = Exact(data, device)
    console.print(f"{len(exact.lengths)} passages, {len(exact.vectors)} vectors; {machine(device)}")
    every = {}
    for kind in args.kinds:
        given = np.load(data / f"queries-{kind}.npy")[TUNED_ON : TUNED_ON + args.queries]
        every[kind] = [q[np.any(q != 0, axis=1)] for q in given]
    kinds: dict[str, dict[str, Any]] = {}
    truths = {}
    for kind, queries in every.items():
        times, truths[kind] = measure(device, queries, args.batches, exact.search)
        kinds[kind] = {"exact": {"ms": times}}
    del exact  # its memory is wanted
    indexes = {}
    for storage in args.storages:
        indexes[storage], rows = searched(args, device, data, storage, every, truths)
        console.print(storage, indexes[storage])
        for kind, found in rows.items():
            kinds[kind] |= found
    if device.type == "cuda":
        torch.cuda.empty_cache()
    beside = fast_plaid(args, data, truths)
    for kind, settings in beside.pop("kinds", {}).items():
        kinds[kind] |= {f"fast-plaid {name}": row for name, row in settings.items()}
    for kind, rows in kinds.items():
        shown(console, f"{kind} ({len(every[kind][0])} vectors)", rows, args.batches)
    console.print("fast-plaid:", beside)
    if args.output:
        figures = {"machine": machine(device), "indexes": indexes, "kinds": kinds} | {
            "fast_plaid": beside
        }
        args.output.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
