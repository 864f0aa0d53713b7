"""Compare indexes with exact MaxSim in torch, in one run: quality, times, sizes.

    python benchmarks/search.py                      10,000 passages of real text
    python benchmarks/search.py --passages 100000    the same, grown by synthetic passages
    python benchmarks/search.py --text FILE          passages of other text (JSON lines)
    python benchmarks/search.py --engine faiss --engine qdrant --engine tachiom=FOLDER
                                                     other engines beside ravqa's index
    python benchmarks/search.py --batches 1 8 64     queries a second in larger calls
    python benchmarks/search.py --build --only 9bit  only how long building takes, and its memory
    python benchmarks/search_report.py FILE...       tables and figures of files of --output

`search_data.py` says which data are searched, and what of it is real, `search_compare.py` how
engines are measured, and `search_ENGINE.py` how each of them is used: `exact` (the baseline),
`ravqa`, `faiss`, `qdrant`, and, each in an environment of its own, `tachiom` and `fast_plaid`.
Queries 0 to 29 of each kind were used for tuning and are left out. Times are of single queries,
by the clock and of all processors; the load of the machine is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import search_data
import search_report
import torch
from rich.console import Console
from search_compare import Comparison

from ravqa.indexes.compressed.index import CompressedIndex

KINDS = ("image-q320", "noise-q320", "text-q320", "image-q113", "image-q32")
TUNED_ON = 30
STORAGES = ("9bit", "4bit")
FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp")
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


def processor() -> dict[str, Any]:
    """Return the processor's name and which of the instructions it has that matter here."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)
    return {
        "name": name[1] if name else platform.processor() or platform.machine(),
        "count": os.cpu_count(),
        "features": [f for f in FEATURES if flags and f in flags[1].split()],
    }


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
        stored = search_data.Stored(folder)
        config = CompressedIndex.Config(storage=storage)
        before = time.process_time()
        with greatest_anonymous() as most:
            seconds, _ = timed(
                lambda: CompressedIndex.build(
                    map(str, range(len(stored.lengths))),
                    stored,
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


def engine(text: str) -> tuple[str, Path | None]:
    """Return the name of an engine, and where it is installed."""
    name, _, where = text.partition("=")
    name = name.replace("-", "_")
    known = ("faiss", "qdrant", "tachiom", "fast_plaid")
    if name not in known:
        raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(known)}")
    if where and not Path(where).exists():
        raise argparse.ArgumentTypeError(f"{where} does not exist")
    return name, Path(where) if where else None


def measure(args: argparse.Namespace, data: Path, console: Console) -> Iterator[dict[str, Any]]:
    """Yield the figures of all engines so far, after every kind of query."""
    engines = {"exact": None, "ravqa": None, **dict(args.engine)}
    storages = [args.only] if args.only else STORAGES

    def wanted(name: str, setting: str) -> bool:
        chosen = name != "ravqa" or setting.startswith(tuple(storages))
        return chosen and (name == "exact" or bool(re.search(args.settings, f"{name} {setting}")))

    with contextlib.closing(Comparison(engines, data, args.threads, wanted, console)) as comparison:
        found: dict[str, Any] = {"kinds": [], "points": [], "batches": []}
        for kind in args.kinds:
            load, gemm = os.getloadavg(), peak()
            queries = range(TUNED_ON, TUNED_ON + args.queries)
            vectors = len(search_data.queries(data, kind)[TUNED_ON])
            found["points"] += comparison.singles(kind, queries, args.patience)
            console.print(f"{kind}: single queries are done, load {os.getloadavg()[0]:.1f}")
            if args.batches:
                every = len(search_data.queries(data, kind))
                many = [i % every for i in range(max(args.batches))]
                found["batches"] += comparison.batches(kind, many, args.batches, args.patience)
            about = {"kind": kind, "vectors": vectors, "gemm_gflops": gemm}
            found["kinds"].append({**about, "load": [load[0], os.getloadavg()[0]]})
            yield {**found, **comparison.about()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Search against exact MaxSim in torch.")
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--real", type=int, default=10_000, help="number of real ones")
    parser.add_argument("--queries", type=int, default=20, help="queries per kind, at most 70")
    parser.add_argument("--text", type=Path, help="JSON lines with title and text")
    parser.add_argument("--folder", type=Path, default=Path("runs/search-benchmark"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=STORAGES, help="measure only this storage")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of queries")
    parser.add_argument(
        "--engine",
        type=engine,
        action="append",
        default=[],
        metavar="NAME[=PATH]",
        help="measure faiss, qdrant, tachiom or fast_plaid too; PATH: the interpreter of its "
        "environment, or a folder of packages",
    )
    parser.add_argument("--settings", default="", help="regular expression: ENGINE SETTING")
    parser.add_argument("--batches", type=int, nargs="+", help="queries in one call")
    parser.add_argument(
        "--patience", type=float, default=60, help="processor seconds for a setting and kind"
    )
    parser.add_argument("--rebuild", action="store_true")
    parser.add_argument("--build", action="store_true", help="measure only building, again")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(width=130)

    data = args.folder / f"{args.real}"
    search_data.make(data, args.real, args.text)
    if args.passages != args.real:
        search_data.grow(data, args.folder / f"{args.passages}", args.passages)
        data = args.folder / f"{args.passages}"

    storages = [args.only] if args.only else list(STORAGES)
    indexes, builds = build_all(data, storages, args.rebuild or args.build, console)
    stats = next(iter(indexes.values())).stats()
    figures = {
        "passages": args.passages,
        "vectors": stats["vectors"],
        "dim": search_data.DIM,
        "source": args.text.parent.name if args.text else "docstrings",
        "threads": args.threads,
        "processor": processor(),
        "builds": builds,
    }
    for found in [{}] if args.build else measure(args, data, console):
        figures |= found
        if args.output:
            args.output.write_text(json.dumps(figures, indent=1))
    if not args.build:
        console.print(search_report.tables([figures]), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
