"""Measure how BM25, a dense index and a late-interaction index scale with the number of passages.

    python benchmarks/scale.py --folder DIR                 100,000 passages, 20,000 of them encoded
    python benchmarks/scale.py --folder DIR --passages 1000000 --encoded 200000
    python benchmarks/scale.py --folder DIR --steps report  the tables of all sizes in DIR

`scale_data.py` says what of the passages and of their vectors is real. Every task runs in a process
of its own; its seconds, memory and bytes are written when it ends. What a killed run has finished
is kept, and within the encoding every chunk. Processor time is that of all threads. Memory is the
most that was resident, anonymous and of mapped files apart; the system gives the latter back when
others need it. Recall is the share of the best 10 and 100 passages by an exact search, which reads
all vectors block by block (for BM25: all texts), that an index finds; equal scores count as equal.
The load of the machine is reported. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import scale_data
import scale_steps

from ravqa.core.files import atomic_write
from ravqa.runs.console import Console

STEPS = ("corpus", "bm25", "encode", "dense", "late", "search", "report")
QUERIES = 20
_FORMAT = 1
_LEARNS = 10_000  # vectors that faiss wants for the 256 centroids of a product quantiser
_MEMORY = re.compile(r"^(RssAnon|RssFile|RssShmem):\s+(\d+) kB", re.MULTILINE)


def lists_of(passages: int) -> int:
    """Return how many lists faiss' IVF gets: the power of two near four times the root."""
    return max(1, 1 << round(4 * passages**0.5).bit_length() - 1)


def tasks_of(steps: list[str], passages: int, factories: list[str] | None) -> Iterator[str]:
    """Yield the tasks of some steps in order."""
    codes = "PQ64" if passages >= _LEARNS else "SQ8"
    made = factories or [f"IVF{lists_of(passages)},{codes}", "HNSW32"]
    tasks = {
        "corpus": ["corpus", "doctor"],
        "bm25": ["bm25"],
        "encode": ["encode"],
        "dense": [f"dense {factory}" for factory in made],
        "late": ["late"],
        "search": ["exact", "search bm25", *(f"search dense {f}" for f in made), "search late"],
    }
    for step in STEPS[:-1]:
        if step in steps:
            yield from tasks[step]


def needed(passages: int, encoded: int) -> int:
    """Return an upper bound of the bytes on disk of all steps."""
    tokens = scale_data.MOST * scale_data.DIM
    texts = 2 * 1200 + 1000  # bytes of a passage: twice its text, and its words in BM25's matrix
    dense = 4 * scale_data.WHOLE * 2 + 600  # faiss' input, and what it builds of it
    late = 2 * tokens + tokens + scale_data.MOST * 24  # the index's input in float16, and itself
    return passages * (texts + dense + late) + encoded * (2 * tokens + 2 * scale_data.WHOLE)


def bytes_in(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


@contextmanager
def measured(into: dict[str, Any]) -> Iterator[None]:
    """Add the seconds and the greatest resident memory, in bytes, of what runs inside."""
    most, ended = {"RssAnon": 0, "RssFile": 0, "RssShmem": 0}, threading.Event()
    status = Path("/proc/self/status")

    def look() -> None:
        for name, kib in _MEMORY.findall(status.read_text()):
            most[name] = max(most[name], int(kib) * 1024)

    def watch() -> None:
        while not ended.wait(0.05):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    load, wall, processor = os.getloadavg()[0], time.perf_counter(), time.process_time()
    watcher.start()
    try:
        yield
    finally:
        into["seconds"] = time.perf_counter() - wall
        into["processor_seconds"] = time.process_time() - processor
        ended.set()
        watcher.join()
        look()
        into["load"] = [load, os.getloadavg()[0]]
        into["anonymous"] = most["RssAnon"]
        into["mapped"] = most["RssFile"] + most["RssShmem"]


def run_task(args: argparse.Namespace) -> None:
    """Do one task in this process and write what it took."""
    own = args.folder / str(args.passages)
    place = scale_steps.Place(args.folder, own, args.passages, args.encoded, args.queries)
    found: dict[str, Any] = {"task": args.task, "passages": args.passages}
    found |= {"encoded": args.encoded}
    console = Console()
    with measured(found):
        figures = scale_steps.run(args.task, place, console.progress)
    console.close()
    # What the task says itself counts: encoding knows the time of runs that were killed.
    atomic_write(record(own, args.task), json.dumps({**found, **figures}, indent=1))


def record(own: Path, task: str) -> Path:
    name = re.sub(r"[^\w.,-]+", "-", task)
    return own / "steps" / f"{name}.json"


def settle(args: argparse.Namespace) -> str:
    """Prepare the folder; return why these settings cannot be measured there, "" if they can."""
    if not 0 < args.encoded <= args.passages:
        return "--encoded is at least 1 and at most --passages"
    settings = {"format": _FORMAT, "text": str(args.text), "encoded": args.encoded}
    file = args.folder / "settings.json"
    if file.exists():
        found = json.loads(file.read_text())
        if found != settings:
            return f"{args.folder} was made with {found}: choose another folder"
    args.folder.mkdir(parents=True, exist_ok=True)
    free, wanted = shutil.disk_usage(args.folder).free, needed(args.passages, args.encoded)
    lacking = wanted - bytes_in(args.folder) - free
    if lacking > 0:
        return (
            f"{args.folder} has {free / 1e9:.1f} GB free, but up to {wanted / 1e9:.1f} GB are "
            f"needed: {lacking / 1e9:.1f} GB too few"
        )
    if args.text is not None and not args.text.is_file():
        return f"{args.text} does not exist"
    if not file.exists():
        scale_data.write_real(args.folder / "real.json", args.text, args.encoded)
        file.write_text(json.dumps(settings))
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--encoded", type=int, default=20_000, help="of these, by the encoder")
    parser.add_argument("--folder", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--text", type=Path, help="JSON lines with title and text; else docstrings")
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--factory", action="append", help="faiss' factory strings; repeatable")
    parser.add_argument(
        "--steps",
        type=lambda text: text.split(","),
        default=list(STEPS),
        help=f"some of {','.join(STEPS)}; what they need must have been done",
    )
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.steps) - set(STEPS):
        parser.error(f"--steps: no {', '.join(sorted(unknown))}; {', '.join(STEPS)} exist")
    if args.task:
        run_task(args)
        return 0
    if args.steps != ["report"] and (problem := settle(args)):
        print(f"scale.py: {problem}", file=sys.stderr)
        return 2
    own = args.folder / str(args.passages)
    (own / "steps").mkdir(parents=True, exist_ok=True)
    for task in tasks_of(args.steps, args.passages, args.factory):
        if record(own, task).exists():
            print(f"{task}: done before", flush=True)
            continue
        print(f"{task} ...", flush=True)
        command = [sys.executable, __file__, "--task", task, "--folder", str(args.folder)]
        command += ["--passages", str(args.passages), "--encoded", str(args.encoded)]
        ended = subprocess.run([*command, "--queries", str(args.queries)], check=False)
        if ended.returncode:
            print(f"scale.py: {task} ended with code {ended.returncode}", file=sys.stderr)
            return 1
    if "report" in args.steps:
        import scale_report

        print(scale_report.tables(args.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
