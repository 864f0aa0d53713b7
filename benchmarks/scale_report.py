"""The tables of `scale.py`: what was measured, by size, and what follows for another size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TARGET = 6_000_000
"""Passages that are extrapolated to: about the articles of English Wikipedia."""

Record = dict[str, Any]

_ORDER = ("corpus", "doctor", "bm25", "encode", "dense", "late", "exact", "search")


def read(folder: Path) -> dict[int, dict[str, Record]]:
    """Return the records of all sizes in a folder, by number of passages and task, in order."""
    files = folder.glob("*/steps/*.json")
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    records.sort(key=lambda r: (r["passages"], _ORDER.index(r["task"].split()[0]), r["task"]))
    found: dict[int, dict[str, Record]] = {}
    for one in records:
        found.setdefault(one["passages"], {})[one["task"]] = one
    return found


def tables(folder: Path) -> str:
    """Return tables in Markdown."""
    sizes = read(folder)
    parts = ["\n".join(part) for part in (_steps(sizes), _searches(sizes))]
    if len(sizes) > 1:
        parts.append("\n".join(_extrapolated(sizes)))
    return "\n\n".join(parts)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _steps(sizes: dict[int, dict[str, Record]]) -> Iterator[str]:
    titles = ("passages", "task", "minutes", "of processor", "bytes", "anonymous", "mapped", "load")
    yield _row(*titles)
    yield _row(*["---"] * len(titles))
    # All sizes share the vectors: that which encoded them shows the memory that it took.
    encodings = [records["encode"] for records in sizes.values() if "encode" in records]
    encoding = max(encodings, key=lambda r: r["anonymous"], default=None)
    for passages, records in sizes.items():
        for task, one in records.items():
            if task.startswith("search") or (task == "encode" and one is not encoding):
                continue
            name = f"{task} ({one['encoded']:,})" if task == "encode" else task
            yield _row(
                f"{passages:,}",
                name,
                _minutes(one["seconds"]),
                _minutes(one["processor_seconds"]),
                _size(one["bytes"]) if "bytes" in one else "",
                _size(one["anonymous"]),
                _size(one["mapped"]),
                "{:.1f}, {:.1f}".format(*one["load"]),
            )


def _searches(sizes: dict[int, dict[str, Record]]) -> Iterator[str]:
    titles = ("passages", "search", "ms", "of processor", "recall@10", "recall@100", "anonymous")
    titles = (*titles, "mapped")
    yield _row(*titles)
    yield _row(*["---"] * len(titles))
    for passages, records in sizes.items():
        for task, one in records.items():
            for setting, found in one.get("settings", {}).items():
                yield _row(
                    f"{passages:,}",
                    f"{task.removeprefix('search ')} {setting}".strip(),
                    f"{found['ms']:.1f}",
                    f"{found['processor_ms']:.1f}",
                    f"{found['recall@10']:.3f}",
                    f"{found['recall@100']:.3f}",
                    _size(one["anonymous"]),
                    _size(one["mapped"]),
                )


def _extrapolated(sizes: dict[int, dict[str, Record]]) -> Iterator[str]:
    """Yield a table for `TARGET` passages on the line through the two largest sizes."""
    one, other = list(sizes)[-2:]
    titles = ("task", "minutes of processor", "bytes", "anonymous", "ms of processor")
    yield (
        f"Extrapolated to {TARGET:,} passages, on the line through {one:,} and {other:,}; not "
        "measured:"
    )
    yield ""
    yield _row(*titles)
    yield _row(*["---"] * len(titles))
    for task in sizes[other]:
        # The encoding is of as many passages whatever the size.
        if task == "encode" or task not in sizes[one]:
            continue
        low, high = sizes[one][task], sizes[other][task]

        def at(value: Callable[[Record], float], low: Record = low, high: Record = high) -> float:
            return line(one, value(low), other, value(high), TARGET)

        settings = high.get("settings", {})
        times = [
            f"{setting} {at(lambda r, s=setting: r['settings'][s]['processor_ms']):,.0f}".strip()
            for setting in settings
        ]
        yield _row(
            task,
            "" if settings else _minutes(at(lambda r: r["processor_seconds"])),
            _size(at(lambda r: r["bytes"])) if "bytes" in high else "",
            _size(at(lambda r: r["anonymous"])),
            ", ".join(times),
        )


def line(x: float, y: float, other_x: float, other_y: float, wanted: float) -> float:
    """Return the value at `wanted` of the line through two points."""
    return y + (other_y - y) / (other_x - x) * (wanted - x)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}" if seconds >= 6 else f"{seconds / 60:.2f}"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
