"""Measure engines side by side for `search.py`: query by query, each engine in its own process.

All settings of all engines answer one query before the next one is asked, in another order for
every query: whatever else the machine does disturbs all of them alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

_HERE = Path(__file__).parent
_LIMIT = 900  # seconds for one answer
_VARIABLES = ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON")


class EngineError(Exception):
    """An engine that cannot be measured (any longer), and why, in one line."""


class Worker:
    """The process of one engine; see `search_worker.py`."""

    def __init__(self, name: str, where: Path | None, data: Path, threads: int):
        """Start it; it opens or builds its index.

        Args:
            where: the interpreter of its environment, or a folder of packages for this one; None
                for this environment.
        """
        variables = {f"{each}_NUM_THREADS": str(threads) for each in _VARIABLES}
        paths = [str(_HERE.parent)]
        if where is not None and where.is_dir():
            paths.append(str(where.resolve()))
            where = None
        self.name = name
        self._log = data / f"{name}.log"
        command = [str(where or sys.executable), str(_HERE / "search_worker.py"), name]
        with self._log.open("w") as log, _processors(threads):
            self._process = subprocess.Popen(
                [*command, str(data), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(paths)},
            )
        self.about = self._answer()

    def ask(self, kind: str, queries: Sequence[int], setting: str, k: int) -> dict[str, Any]:
        """Return `seconds`, `processor_seconds` and the rankings `found`."""
        assert self._process.stdin is not None
        request = {"kind": kind, "queries": list(queries), "setting": setting, "k": k}
        timer = threading.Timer(_LIMIT, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self._answer()
        except BrokenPipeError:
            raise EngineError(self._last_words()) from None
        finally:
            timer.cancel()

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError), self._process:  # closes the pipes
            pass

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(self._last_words())
        found: dict[str, Any] = json.loads(line)
        return found

    def _last_words(self) -> str:
        self.close()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with code {self._process.returncode}"


@contextlib.contextmanager
def _processors(count: int) -> Iterator[None]:
    """Start processes inside for the first `count` processors only, where the system can do it."""
    usual = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if usual:
        os.sched_setaffinity(0, sorted(usual)[:count])
    try:
        yield
    finally:
        if usual:
            os.sched_setaffinity(0, usual)


class Comparison:
    """The engines of one run.

    Attributes:
        workers: those that can be measured, by name; failures: why others cannot.
    """

    def __init__(
        self,
        engines: Mapping[str, Path | None],
        data: Path,
        threads: int,
        wanted: Callable[[str, str], bool],
        console: Console,
    ):
        """Start the engines, one after the other; `exact` must be among them.

        Args:
            wanted: whether a setting (engine, name) is to be measured.
        """
        self._wanted = wanted
        self.workers: dict[str, Worker] = {}
        self.failures: dict[str, str] = {}
        self._console = console
        for name, where in engines.items():
            try:
                self.workers[name] = Worker(name, where, data, threads)
                console.print(name, self.workers[name].about["versions"])
            except (EngineError, OSError) as e:
                self._fail(name, e)

    def _fail(self, name: str, error: Exception) -> None:
        self.failures[name] = str(error)
        self.workers.pop(name, None)
        self._console.print(f"{name} is not measured: {error}", markup=False)
        if name == "exact":
            raise error

    def about(self) -> dict[str, Any]:
        """Return versions and builds of the engines, and why others were not measured."""
        return {
            "engines": {name: worker.about for name, worker in self.workers.items()},
            "failures": self.failures,
        }

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()

    def _settings(self) -> list[tuple[str, str]]:
        every = [(n, s) for n, worker in self.workers.items() for s in worker.about["settings"]]
        return [one for one in every if self._wanted(*one)]

    def _ask(
        self, kind: str, queries: Sequence[int], engine: str, setting: str, k: int
    ) -> dict[str, Any] | None:
        """Return the answer; None if the engine failed, now or before."""
        if engine not in self.workers:
            return None
        try:
            return self.workers[engine].ask(kind, queries, setting, k)
        except EngineError as e:
            self._fail(engine, e)
            return None

    def singles(
        self, kind: str, queries: Sequence[int], patience: float, k: int = 100
    ) -> list[dict[str, Any]]:
        """Return times and quality of every setting of every engine for single queries.

        Args:
            patience: seconds of processor time for a setting; when they are spent, the remaining
                queries are left out.
        """
        settings = self._settings()
        for engine, setting in settings:  # compiles, maps files, fills caches
            self._ask(kind, [0], engine, setting, k)
        times: dict[tuple[str, str], list[tuple[float, float]]] = {s: [] for s in settings}
        found: dict[tuple[str, str], list[list[int]]] = {s: [] for s in settings}
        rng = np.random.default_rng(len(settings))
        for query in queries:
            for i in rng.permutation(len(settings)):
                one = settings[i]
                if one[0] != "exact" and sum(spent for _, spent in times[one]) > patience:
                    continue
                if (reply := self._ask(kind, [query], *one, k)) is None:
                    continue
                times[one].append((reply["seconds"], reply["processor_seconds"]))
                found[one] += reply["found"]
        truths = found["exact", "float32"]
        points = []
        for one in settings:
            if not times[one] or one[0] not in self.workers:
                continue
            walls, processor = map(list, zip(*times[one], strict=True))
            pairs = list(zip(found[one], truths, strict=False))
            points.append(
                {
                    "kind": kind,
                    "engine": one[0],
                    "setting": one[1],
                    "queries": len(walls),
                    "median_ms": statistics.median(walls) * 1e3,
                    "p95_ms": float(np.quantile(walls, 0.95)) * 1e3,
                    "processor_ms": statistics.median(processor) * 1e3,
                    "overlap_at_10": statistics.mean(len({*f[:10]} & {*t[:10]}) for f, t in pairs)
                    / 10,
                    "recall_at_100": statistics.mean(len({*f} & {*t}) / len(t) for f, t in pairs),
                }
            )
        return points

    def batches(
        self, kind: str, queries: Sequence[int], sizes: Sequence[int], patience: float, k: int = 100
    ) -> list[dict[str, Any]]:
        """Return queries a second when as many queries as a size are searched in one call.

        Args:
            patience: seconds of processor time for a setting and size; when they are spent, the
                remaining queries are left out.
        """
        points = []
        for engine, setting in self._settings():
            for size in sizes:
                groups = [queries[i : i + size] for i in range(0, len(queries), size)]
                wall = processor = done = 0.0
                for group in groups:
                    if (reply := self._ask(kind, group, engine, setting, k)) is None:
                        break
                    wall, processor = (
                        wall + reply["seconds"],
                        processor + reply["processor_seconds"],
                    )
                    done += len(group)
                    if processor > patience:
                        break
                if done:
                    points.append(
                        {
                            "kind": kind,
                            "engine": engine,
                            "setting": setting,
                            "batch": size,
                            "queries_per_second": done / wall,
                            "processor_ms": processor / done * 1e3,
                        }
                    )
        return points
