"""The process in which `search.py` measures one engine, in the engine's own environment.

    python search_worker.py NAME DATA THREADS

imports `search_NAME.py` and answers a request, one line of JSON, on standard input with a line of
JSON. That module has

    PACKAGES    distributions whose versions are reported, as far as they are installed
    SETTINGS    options of a search by a name, from least to most effort
    Engine(data, folder, threads)
                opens the index in its folder, or builds it there first
    search(queries, k, **options)
                returns the numbers of each query's k best passages, best first
    note()      may return what else is to be reported

Only numpy is needed here and in `search_data.Stored`. The process is kept to as many processors as
it may use threads: some engines have no other limit.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from search_data import queries


def main() -> None:
    name, data, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print is no answer

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    module = importlib.import_module(f"search_{name}")
    engine, built = opened(module.Engine, data, data / name, threads)
    versions = {}
    for package in module.PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    note = engine.note() if hasattr(engine, "note") else ""
    settings = list(module.SETTINGS)
    answer({"versions": versions, "settings": settings, "build": built, "note": note})
    known: dict[str, list[np.ndarray]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        kind, options = request["kind"], module.SETTINGS[request["setting"]]
        if kind not in known:
            known[kind] = queries(data, kind)
        some = [known[kind][i] for i in request["queries"]]
        wall, processor = time.perf_counter(), time.process_time()
        found = engine.search(some, request["k"], **options)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        rows = [[int(i) for i in ranking] for ranking in found]
        answer({"seconds": wall, "processor_seconds": processor, "found": rows})


def opened(kind: Any, data: Path, folder: Path, threads: int) -> tuple[Any, dict[str, Any]]:
    """Return the engine and what its build took; a build that was broken off is done again."""
    notes = folder / "built.json"
    if notes.exists():
        return kind(data, folder, threads), json.loads(notes.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wall, processor = time.perf_counter(), time.process_time()
    engine = kind(data, folder, threads)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if not size:  # it has built nothing
        return engine, {}
    built = {"seconds": wall, "processor_seconds": processor, "threads": threads, "bytes": size}
    notes.write_text(json.dumps(built))
    return engine, built


if __name__ == "__main__":
    main()
