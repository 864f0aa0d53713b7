"""Compare an index with exact MaxSim in torch, in one run: quality, times, sizes.

    python benchmarks/search.py                      10,000 passages of real text
    python benchmarks/search.py --passages 100000    the same, grown by synthetic passages
    python benchmarks/search.py --build --only 9bit  only how long building takes, and its memory
    python benchmarks/search.py --plot scaling.svg A.json B.json ...   plots files of --output

`search_data.py` says which data are searched, and what of it is real. The baseline is the faster of
two exact searches in float32, both with the vectors in memory: passages sorted by length in blocks
padded to equal length, and one flat product with a maximum per segment (measured only on the first
queries: it is slower). Times are medians of single queries, alternating between baseline and index.
Queries 0 to 29 of each kind were used for tuning and are left out. `--fast-plaid PYTHON` names the
interpreter of an environment with fast-plaid, which then searches the same data with the same
queries (see `search_fast_plaid.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import search_data
import torch
from rich.console import Console
from rich.table import Table

from ravqa.indexes.compressed.index import CompressedIndex
from ravqa.indexes.maxsim import maxsim

KINDS = ("image-q320", "noise-q320", "text-q320", "image-q113", "image-q32")
TUNED_ON = 30
SETTINGS = [("9bit", "fast"), ("9bit", "default"), ("9bit", "careful"), ("4bit", "default")]
AT_REST = """
import sys
from ravqa.indexes.compressed.index import CompressedIndex

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = resident()
index = CompressedIndex.open(sys.argv[1])
print(resident() - before)
"""


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


class Exact:
    """The baseline: exact search with float32 vectors in memory, sorted by length."""

    def __init__(self, folder: Path):
        self.lengths = np.load(folder / "lengths.npy")
        stored = np.load(folder / "vectors.npy", mmap_mode="r")
        order = np.argsort(self.lengths, kind="stable")
        begins = np.cumsum(self.lengths) - self.lengths
        self.order = order
        self.vectors = torch.empty(stored.shape)
        at = 0
        for i in order:
            rows = stored[begins[i] : begins[i] + self.lengths[i]]
            self.vectors[at : at + len(rows)] = torch.from_numpy(rows.astype(np.float32))
            at += len(rows)
        self.sorted = self.lengths[order]
        self.blocks = self._blocks()

    def _blocks(self) -> list[tuple[int, int, int, int]]:
        """Return blocks of about 8,192 vectors: the range of passages, and of their vectors."""
        ends = np.cumsum(self.sorted)
        found, first = [], 0
        while first < len(ends):
            begin = int(ends[first] - self.sorted[first])
            last = max(first + 1, int(np.searchsorted(ends, begin + 8192, side="right")))
            found.append((first, last, begin, int(ends[last - 1])))
            first = last
        return found

    def blocked(self, query: np.ndarray, k: int) -> np.ndarray:
        scores = np.empty(len(self.lengths), np.float32)
        left = torch.from_numpy(query)
        for first, last, begin, end in self.blocks:
            lengths = self.sorted[first:last]
            if lengths[0] == lengths[-1]:
                best = (left @ self.vectors[begin:end].T).view(len(query), last - first, -1)
                scores[first:last] = best.amax(-1).sum(0).numpy()
            else:
                scores[first:last] = maxsim(left, self.vectors[begin:end], lengths)
        return self.order[np.argsort(-scores, kind="stable")[:k]]

    def flat(self, query: np.ndarray, k: int) -> np.ndarray:
        lengths = torch.from_numpy(self.sorted)
        products = self.vectors @ torch.from_numpy(query).T
        best = torch.segment_reduce(products, "max", lengths=lengths)
        return self.order[np.argsort(-best.sum(1).numpy(), kind="stable")[:k]]


def peak() -> float:
    """Return the GFLOP/s of a large float32 product, the best of several."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(timed(lambda: a @ a)[0] for _ in range(8)) / 1e9


@contextlib.contextmanager
def greatest_anonymous() -> Iterator[list[float]]:
    """Yield a list whose only item becomes this process's most anonymous memory inside, in GB.

    Pages of mapped files do not count. It is 0 where the system does not say.
    """
    most, ended, status = [0.0], threading.Event(), Path("/proc/self/status")

    def watch() -> None:
        while not ended.wait(0.02) and status.exists():
            kib = re.search(r"^RssAnon:\s+(\d+)", status.read_text(), re.MULTILINE)
            most[0] = max(most[0], int(kib[1]) / 2**20 if kib else 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()


def build(folder: Path, storage: str, again: bool) -> tuple[CompressedIndex, dict[str, Any]]:
    path, notes = folder / f"index-{storage}", folder / f"index-{storage}.json"
    if again or not notes.exists():
        shutil.rmtree(path, ignore_errors=True)
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        lengths = np.load(folder / "lengths.npy")
        ends = np.cumsum(lengths)
        passages = (vectors[end - n : end] for end, n in zip(ends, lengths, strict=True))
        config = CompressedIndex.Config(storage=storage)
        before = time.process_time()
        with greatest_anonymous() as most:
            seconds, _ = timed(
                lambda: CompressedIndex.build(
                    map(str, range(len(lengths))),
                    passages,
                    path,
                    dim=search_data.DIM,
                    config=config,
                )
            )
        found = {
            "seconds": seconds,
            "processor_seconds": time.process_time() - before,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "anonymous_gb": most[0],
        }
        notes.write_text(json.dumps(found))
    opening, index = timed(lambda: CompressedIndex.open(path))
    return index, {**json.loads(notes.read_text()), "open_seconds": opening}


def build_all(
    data: Path, storages: list[str], again: bool, console: Console
) -> tuple[dict[str, CompressedIndex], dict[str, dict[str, Any]]]:
    """Build an index of each storage; return them, and what building took."""
    indexes, builds = {}, {}
    for storage in storages:
        index, builds[storage] = build(data, storage, again)
        indexes[storage] = index
        stats = index.stats()
        builds[storage]["bytes"] = stats["bytes"]
        builds[storage]["resident_at_rest"] = at_rest(index.path)
        builds[storage]["of_float16"] = stats["bytes"] / (stats["vectors"] * search_data.DIM * 2)
        console.print(storage, builds[storage])
    return indexes, builds


def at_rest(path: Path) -> int | None:
    """Return the bytes that opening an index adds to a process; None if the system does not say."""
    if not Path("/proc/self/statm").exists():
        return None
    command = [sys.executable, "-c", AT_REST, str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def fast_plaid(
    python: Path | None, data: Path, count: int, threads: int, truths: dict[str, list[list[int]]]
) -> dict[str, Any]:
    """Return what `search_fast_plaid.py` prints, with its overlap instead of its rankings."""
    if python is None:
        return {"skipped": "no --fast-plaid"}
    script = Path(__file__).with_name("search_fast_plaid.py")
    numbers = map(str, (TUNED_ON, count, threads))
    command = [str(python), str(script), str(data), *numbers, *truths]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    if run.returncode:
        return {"skipped": run.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    for kind, settings in found["kinds"].items():
        for values in settings.values():
            pairs = list(zip(values.pop("found"), truths[kind], strict=True))
            overlaps = [len({*f[:10]} & {*t[:10]}) / 10 for f, t in pairs]
            values["overlap_at_10"] = statistics.mean(overlaps)
            values["recall_at_100"] = statistics.mean(len({*f} & {*t}) / 100 for f, t in pairs)
    return found


def plot(target: Path, sources: list[Path]) -> None:
    """Plot median times against the number of passages, with logarithmic axes."""
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ravqa"})
    runs = sorted((json.loads(path.read_text()) for path in sources), key=lambda r: r["passages"])
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for side, kind in zip(axes, ("image-q320", "image-q32"), strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for run in runs:
            found = next(k for k in run["kinds"] if k["kind"] == kind)
            lines.setdefault("exact, float32", []).append((run["passages"], found["exact_ms"]))
            for search in found["searches"]:
                point = run["passages"], search["median_ms"]
                lines.setdefault(search["setting"], []).append(point)
        whole = {name: points for name, points in lines.items() if len(points) == len(runs)}
        for (name, points), mark in zip(whole.items(), "os^Dv", strict=False):
            side.loglog(*zip(*points, strict=True), marker=mark, label=name)
        side.set_title(f"{found['vectors']} query vectors", fontsize=10)
        side.set_xlabel("passages")
        side.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("ms a query (median)")
    axes[1].legend(fontsize=8)
    figure.savefig(target, metadata={"Date": None})


def measure(
    kind: str,
    data: Path,
    indexes: dict[str, CompressedIndex],
    settings: list[tuple[str, str]],
    exact: Exact,
    count: int,
) -> dict[str, Any]:
    """Return times and quality of every search for the queries of one kind."""
    queries = np.load(data / f"queries-{kind}.npy")[TUNED_ON : TUNED_ON + count]
    live = [q[np.any(q != 0, axis=1)] for q in queries]
    for index in indexes.values():
        index.search(live, 100)  # compiles and maps files; the baseline's are in memory
    exact.blocked(live[0], 100)
    some = live[:3] if len(exact.lengths) <= 20_000 else live[:1]
    flat = statistics.median(timed(lambda q=q: exact.flat(q, 100))[0] for q in some)
    times: dict[Any, list[float]] = {"exact": []}
    truths: list[list[int]] = []
    quality: dict[Any, list[tuple[float, float]]] = {}
    for query in live:
        seconds, truth = timed(lambda q=query: exact.blocked(q, 100).tolist())
        times["exact"].append(seconds)
        truths.append(truth)
        for setting in settings:
            index = indexes[setting[0]]
            seconds, found = timed(
                lambda q=query, i=index, e=setting[1]: i.search([q], 100, effort=e)
            )
            ids = [int(i) for i, _ in found[0]]
            overlap = len(set(ids[:10]) & set(truth[:10])) / 10
            recall = len(set(ids) & set(truth)) / 100
            times.setdefault(setting, []).append(seconds)
            quality.setdefault(setting, []).append((overlap, recall))
    baseline = min(statistics.median(times["exact"]), flat)
    flops = 2 * len(live[0]) * search_data.DIM * len(exact.vectors)
    searches = []
    for setting, pairs in quality.items():
        overlap, recall = np.mean(pairs, axis=0)
        median = statistics.median(times[setting])
        searches.append(
            {
                "setting": " ".join(setting),
                "median_ms": median * 1e3,
                "p95_ms": float(np.quantile(times[setting], 0.95)) * 1e3,
                "ratio": baseline / median,
                "overlap_at_10": float(overlap),
                "recall_at_100": float(recall),
            }
        )
    together, _ = timed(lambda: next(iter(indexes.values())).search(live, 100))
    return {
        "kind": kind,
        "vectors": len(live[0]),
        "exact_ms": baseline * 1e3,
        "exact_p95_ms": float(np.quantile(times["exact"], 0.95)) * 1e3,
        "exact_flat_ms": flat * 1e3,
        "exact_gflops": flops / baseline / 1e9,
        "searches": searches,
        "truths": truths,
        "queries_per_second": len(live) / together,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Search against exact MaxSim in torch.")
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--real", type=int, default=10_000, help="number of real ones")
    parser.add_argument("--queries", type=int, default=20, help="queries per kind, at most 70")
    parser.add_argument("--text", type=Path, help="JSON lines with title and text")
    parser.add_argument("--folder", type=Path, default=Path("runs/search-benchmark"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["9bit", "4bit"], help="measure only this storage")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of queries")
    parser.add_argument("--rebuild", action="store_true")
    parser.add_argument("--build", action="store_true", help="measure only building, again")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--fast-plaid", type=Path, metavar="PYTHON", help="with fast-plaid")
    parser.add_argument("--plot", type=Path, nargs="+", metavar="FILE", help="SVG, then JSON files")
    args = parser.parse_args()
    if args.plot:
        plot(args.plot[0], args.plot[1:])
        return
    torch.set_num_threads(args.threads)
    console = Console(width=130)

    data = args.folder / f"{args.real}"
    search_data.make(data, args.real, args.text)
    if args.passages != args.real:
        search_data.grow(data, args.folder / f"{args.passages}", args.passages)
        data = args.folder / f"{args.passages}"

    settings = [s for s in SETTINGS if args.only in {None, s[0]}]
    storages = list(dict.fromkeys(s for s, _ in settings))
    indexes, builds = build_all(data, storages, args.rebuild or args.build, console)
    if args.build:
        if args.output:
            figures = {"passages": args.passages, "threads": args.threads, "builds": builds}
            args.output.write_text(json.dumps(figures, indent=1))
        return
    exact = Exact(data)
    gemm = peak()
    console.print(
        f"a product of 2048 x 2048 matrices: {gemm:.0f} GFLOP/s on {args.threads} threads"
    )
    columns = "queries", "search", "median ms", "p95 ms", "times exact", "overlap@10", "recall@100"
    table = Table(*columns)
    kinds = []
    for kind in args.kinds:
        found = measure(kind, data, indexes, settings, exact, args.queries)
        kinds.append(found)
        table.add_row(
            f"{kind} ({found['vectors']})",
            "exact",
            f"{found['exact_ms']:.0f}",
            f"{found['exact_p95_ms']:.0f}",
            f"{found['exact_gflops'] / gemm:.0%} of GEMM peak",
        )
        for search in found["searches"]:
            table.add_row(
                "",
                search["setting"],
                f"{search['median_ms']:.1f}",
                f"{search['p95_ms']:.1f}",
                f"{search['ratio']:.1f}",
                f"{search['overlap_at_10']:.3f}",
                f"{search['recall_at_100']:.3f}",
            )
        rate = found["queries_per_second"]
        table.add_row("", f"default, all in one call: {rate:.1f} a second", end_section=True)
    console.print(table)
    beside = fast_plaid(
        args.fast_plaid,
        data,
        args.queries,
        args.threads,
        {found["kind"]: found.pop("truths") for found in kinds},
    )
    console.print("fast-plaid:", beside)
    if args.output:
        figures = {
            "passages": args.passages,
            "threads": args.threads,
            "gemm_gflops": gemm,
            "builds": builds,
            "kinds": kinds,
            "fast_plaid": beside,
        }
        args.output.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
