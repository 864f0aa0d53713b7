"""Tables (Markdown) and figures (SVG) of the files that `search.py --output` wrote.

python benchmarks/search_report.py FILE...                    tables
python benchmarks/search_report.py --curves OUT.svg FILE...   time against overlap
python benchmarks/search_report.py --scaling OUT.svg FILE...  time against number of passages
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

TARGETS = (0.9, 0.95, 0.99)
_LEAST = 0.6  # overlap at the left edge of a panel of curves
_WIDTH, _HEIGHT, _COLUMNS = 360, 230, 2  # of a panel, and panels side by side
_INSET = (54, 30, 12, 40)  # left, top, right, bottom: room for the axes' texts
_STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; }
text { fill: #222; } .grid { stroke: #ddd; } .frame { stroke: #888; fill: none; }
.line { fill: none; stroke-width: 2; } .title { font-weight: 600; }
@media (prefers-color-scheme: dark) {
svg { background: #16181d; } text { fill: #e6e6e6; } .grid { stroke: #333a45; }
.frame { stroke: #7a828e; } }
"""
_SERIES = {  # colours on light and dark pages, and a mark, so that none is known by colour alone
    "ravqa 9bit": ("#c2410c", "#fb923c", "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z"),
    "ravqa 4bit": ("#a16207", "#facc15", "m-2 0a2 2 0 1 0 4 0a2 2 0 1 0-4 0z"),
    "tachiom": ("#1d4ed8", "#60a5fa", "m-3.5-3.5h7v7h-7z"),
    "tachiom rescored": ("#0e7490", "#22d3ee", "m0-5l5 5l-5 5l-5-5z"),
    "faiss": ("#15803d", "#4ade80", "m0-5l4.5 8h-9z"),
    "qdrant": ("#be123c", "#fb7185", "m0 5l4.5-8h-9z"),
    "fast_plaid": ("#7e22ce", "#c084fc", "m-4-1.5h8v3h-8z"),
    "exact": ("#555555", "#bbbbbb", "m-1.5-4h3v8h-3z"),
}


def series_of(point: dict[str, Any]) -> str:
    """Return the name of the curve that a point belongs to."""
    kind, colon, _ = point["setting"].partition(": ")
    return f"{point['engine']} {kind}" if colon else str(point["engine"])


def cost(run: dict[str, Any], point: dict[str, Any]) -> float:
    """Return the milliseconds of a point that are compared."""
    return float(point["processor_ms" if run["threads"] == 1 else "median_ms"])


def merged(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs, those of the same data and threads as one."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        key = tuple(run[name] for name in ("passages", "vectors", "source", "threads"))
        if key in found:
            for name in ("kinds", "points", "batches"):
                found[key][name] += run[name]
        else:
            found[key] = run
    return list(found.values())


def described(run: dict[str, Any]) -> str:
    """Return what was searched, on which machine."""
    about, features = run["processor"], " ".join(run["processor"]["features"])
    text = (
        f"{run['passages']:,} passages of {run['source']} ({run['vectors']:,} vectors), "
        f"{run['threads']} of {about['count']} processors ({about['name']}; {features})"
    )
    if run.get("kinds"):
        gemm = max(kind["gemm_gflops"] for kind in run["kinds"])
        loads = [load for kind in run["kinds"] for load in kind["load"]]
        text += (
            f", {gemm:.0f} GFLOP/s in a large product; load {min(loads):.1f} to {max(loads):.1f}"
        )
    return text


def tables(runs: Sequence[dict[str, Any]]) -> str:
    """Return all figures of the runs as Markdown."""
    out = []
    for run in runs:
        out += [described(run), *_about(run)]
        for kind in run["kinds"]:
            out.append(f"**{_named(kind)}**\n\n{_settings(run, kind)}")
        what = "Processor time" if run["threads"] == 1 else "Time"
        out.append(f"{what} (median, ms) at an overlap@10 of at least:\n\n{_equal(run)}")
        if run["batches"]:
            out.append(f"Queries a second, by the number in one call:\n\n{_batches(run)}")
    return "\n\n".join(out)


def _named(kind: dict[str, Any]) -> str:
    return f"{kind['kind'].partition('-')[0]} ({kind['vectors']})"


def _about(run: dict[str, Any]) -> Iterable[str]:
    lines = []
    for name, about in run["engines"].items():
        versions = ", ".join(f"{p} {v}" for p, v in about["versions"].items())
        line = f"- {name}: {versions}" + (f"; {about['note']}" if about["note"] else "")
        if build := about["build"]:
            line += (
                f"; built in {build['seconds']:.0f} s on {build['threads']} threads "
                f"({build['processor_seconds']:.0f} s of processor time), "
                f"{build['bytes'] / 1e6:.0f} MB"
            )
        lines.append(line)
    for storage, build in run["builds"].items():
        lines.append(
            f"- ravqa {storage}: built in {build['seconds']:.0f} s "
            f"({build['processor_seconds']:.0f} s of processor time), {build['bytes'] / 1e6:.0f} MB"
        )
    lines += [f"- {name} was not measured: {why}" for name, why in run["failures"].items()]
    return ["\n".join(lines)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _settings(run: dict[str, Any], kind: dict[str, Any]) -> str:
    header = "search", "ms", "p95", "processor ms", "x exact", "overlap@10", "recall@100", "queries"
    points = [p for p in run["points"] if p["kind"] == kind["kind"]]
    [baseline] = [cost(run, p) for p in points if p["engine"] == "exact"]
    rows = [
        [
            f"{p['engine']} {p['setting']}",
            f"{p['median_ms']:.1f}",
            f"{p['p95_ms']:.1f}",
            f"{p['processor_ms']:.1f}",
            f"{baseline / cost(run, p):.1f}",
            f"{p['overlap_at_10']:.3f}",
            f"{p['recall_at_100']:.3f}",
            str(p["queries"]),
        ]
        for p in points
    ]
    return _table(header, rows)


def _equal(run: dict[str, Any]) -> str:
    """Return the fastest setting of every engine that reaches an overlap."""
    names = list(dict.fromkeys(map(series_of, run["points"])))
    rows = []
    for kind in run["kinds"]:
        for target in TARGETS:
            row = [f"{_named(kind)}, {_overlap(target)}"]
            for name in names:
                reached = [
                    cost(run, p)
                    for p in run["points"]
                    if (series_of(p), p["kind"]) == (name, kind["kind"])
                    and p["overlap_at_10"] >= target - 1e-9
                ]
                row.append(f"{min(reached):.0f}" if reached else "-")
            rows.append(row)
    return _table(["", *names], rows)


def _overlap(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _batches(run: dict[str, Any]) -> str:
    points = run["batches"]
    vectors = {kind["kind"]: kind for kind in run["kinds"]}
    sizes = sorted({p["batch"] for p in points})
    columns = [(kind, size) for kind in dict.fromkeys(p["kind"] for p in points) for size in sizes]
    found = {
        (p["engine"], p["setting"], p["kind"], p["batch"]): p["queries_per_second"] for p in points
    }
    rows = [
        [
            f"{engine} {setting}",
            *(
                f"{found[key]:.1f}" if (key := (engine, setting, *c)) in found else ""
                for c in columns
            ),
        ]
        for engine, setting in dict.fromkeys((p["engine"], p["setting"]) for p in points)
    ]
    peaks = []
    for kind, _ in columns:
        operations = 2 * vectors[kind]["vectors"] * run["vectors"] * run["dim"]
        peaks.append(f"{max(k['gemm_gflops'] for k in run['kinds']) * 1e9 / operations:.1f}")
    rows.append(["all products at the rate of a large one", *peaks])
    return _table(["", *(f"{_named(vectors[kind])} {size}" for kind, size in columns)], rows)


class _Panel:
    """One plot with a logarithmic axis of milliseconds, and its place in the figure."""

    def __init__(self, root: ElementTree.Element, number: int, title: str, top: float):
        self._group = ElementTree.SubElement(root, "g")
        left = number % _COLUMNS * _WIDTH
        self._group.set("transform", f"translate({left} {top + number // _COLUMNS * _HEIGHT})")
        self.left, self.top = _INSET[0], _INSET[1]
        self.right, self.bottom = _WIDTH - _INSET[2], _HEIGHT - _INSET[3]
        _text(self._group, (self.left + self.right) / 2, self.top - 10, title, "title")

    def draw(
        self,
        lines: dict[str, list[tuple[float, float]]],
        across: Callable[[float], float],
        ticks: Sequence[tuple[float, str]],
        name: str,
    ) -> None:
        """Draw lines of points (x, milliseconds).

        Args:
            across: maps x to 0 to 1.
        """
        values = [ms for points in lines.values() for _, ms in points]
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

        def x(value: float) -> float:
            return self.left + across(value) * (self.right - self.left)

        def y(ms: float) -> float:
            return self.bottom - (math.log10(ms) - low) / (high - low) * (self.bottom - self.top)

        for value, text in ticks:
            _line(self._group, x(value), self.top, x(value), self.bottom)
            _text(self._group, x(value), self.bottom + 15, text)
        _text(self._group, (self.left + self.right) / 2, self.bottom + 32, name)
        for power in range(low, high + 1):
            _line(self._group, self.left, y(10**power), self.right, y(10**power))
            text = f"{10**power:g} ms" if power < 3 else f"{10 ** (power - 3):g} s"
            _text(self._group, self.left - 5, y(10**power) + 4, text, anchor="end")
        for series, points in lines.items():
            path = "M" + "L".join(f"{x(a):.1f} {y(ms):.1f}" for a, ms in points)
            style = f"line s{list(_SERIES).index(series)}"
            _add(self._group, "path", {"class": style, "d": path})
            for a, ms in points:
                mark = _mark(self._group, x(a), y(ms), series)
                ElementTree.SubElement(mark, "title").text = f"{series}: {a:g}, {ms:.1f} ms"
        width, height = self.right - self.left, self.bottom - self.top
        frame = {"x": self.left, "y": self.top, "width": width, "height": height}
        _add(self._group, "rect", {"class": "frame", **{k: str(v) for k, v in frame.items()}})


def _mark(parent: ElementTree.Element, x: float, y: float, series: str) -> ElementTree.Element:
    style = f"mark s{list(_SERIES).index(series)}"
    return _add(parent, "path", {"class": style, "d": f"M{x:.1f} {y:.1f}{_SERIES[series][2]}"})


def _add(parent: ElementTree.Element, tag: str, values: dict[str, str]) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, values)


def _line(parent: ElementTree.Element, x1: float, y1: float, x2: float, y2: float) -> None:
    places = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    _add(parent, "line", {"class": "grid", **{k: f"{v:.1f}" for k, v in places.items()}})


def _text(
    parent: ElementTree.Element,
    x: float,
    y: float,
    text: str,
    style: str = "",
    anchor: str = "middle",
) -> None:
    values = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "class": style}
    _add(parent, "text", values).text = text


def _figure(
    panels: Sequence[tuple[str, dict[str, list[tuple[float, float]]]]],
    across: Callable[[float], float],
    ticks: Sequence[tuple[float, str]],
    name: str,
) -> str:
    """Return an SVG of panels: title and lines."""
    rows = -(-len(panels) // _COLUMNS)
    names = [n for n in _SERIES if any(n in lines for _, lines in panels)]
    legend = 20 * -(-len(names) // 4) + 10
    width, height = _WIDTH * _COLUMNS, legend + rows * _HEIGHT
    root = ElementTree.Element(
        "svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {height}"}
    )
    light, dark = "", ""
    for i, (*colours, _) in enumerate(_SERIES.values()):
        rules = [f".line.s{i} {{ stroke: {c}; }} .mark.s{i} {{ fill: {c}; }}\n" for c in colours]
        light, dark = light + rules[0], dark + rules[1]
    dark = f"@media (prefers-color-scheme: dark) {{\n{dark}}}\n"
    ElementTree.SubElement(root, "style").text = _STYLE + light + dark
    for i, n in enumerate(names):
        x, y = 20 + i % 4 * (width - 20) / 4, 20 + i // 4 * 20
        _mark(root, x, y - 4, n)
        _text(root, x + 10, y, n.replace("_", "-"), anchor="start")
    for i, (title, lines) in enumerate(panels):
        _Panel(root, i, title, legend).draw(lines, across, ticks, name)
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def curves(runs: Sequence[dict[str, Any]]) -> str:
    """Return an SVG of time against overlap@10: a row for each kind of query, a column each run."""
    every = [{kind["kind"] for kind in run["kinds"]} for run in runs]
    kinds = [k["kind"] for k in runs[0]["kinds"] if all(k["kind"] in one for one in every)]
    panels = []
    for name in kinds:
        for run in runs:
            lines: dict[str, list[tuple[float, float]]] = {}
            for p in run["points"]:
                if p["kind"] == name and p["overlap_at_10"] >= _LEAST:
                    point = p["overlap_at_10"], cost(run, p)
                    lines.setdefault(series_of(p), []).append(point)
            [kind] = [k for k in run["kinds"] if k["kind"] == name]
            lines["exact"] = [(_LEAST, lines["exact"][0][1]), *lines["exact"]]
            threads = "processor time" if run["threads"] == 1 else f"{run['threads']} threads"
            panels.append((f"{_named(kind)}, {run['source']}, {threads}", lines))

    # Equal steps where the share that is missed is halved; 1 has a place of its own.
    def across(overlap: float) -> float:
        return math.log((1.01 - _LEAST) / (1.01 - overlap)) / math.log((1.01 - _LEAST) / 0.01)

    ticks = [(t, _overlap(t) if t < 1 else "1") for t in (0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)]
    return _figure(panels, across, ticks, "overlap@10 with exact MaxSim")


def scaling(runs: Sequence[dict[str, Any]], shown: Sequence[str]) -> str:
    """Return an SVG of time against the number of passages, for settings that all runs have."""
    runs = sorted(runs, key=lambda run: int(run["passages"]))
    low, high = (math.log10(runs[i]["passages"]) for i in (0, -1))
    panels = []
    for kind in ("image-q320", "image-q32"):
        lines: dict[str, list[tuple[float, float]]] = {}
        for run in runs:
            for p in run["points"]:
                if p["kind"] == kind and (p["engine"] == "exact" or p["setting"] in shown):
                    lines.setdefault(series_of(p), []).append((run["passages"], cost(run, p)))
        [about] = [k for k in runs[0]["kinds"] if k["kind"] == kind]
        panels.append((f"{about['vectors']} query vectors", lines))

    def across(passages: float) -> float:
        return 0.05 + 0.9 * (math.log10(passages) - low) / ((high - low) or 1)

    ticks = [(run["passages"], f"{run['passages']:,}") for run in runs]
    return _figure(panels, across, ticks, "passages")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables and figures of measured searches.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--curves", type=Path, metavar="SVG")
    parser.add_argument("--scaling", type=Path, metavar="SVG")
    args = parser.parse_args()
    runs = merged(json.loads(path.read_text()) for path in args.files)
    if args.curves:
        args.curves.write_text(curves(runs), encoding="utf-8")
    if args.scaling:
        shown = "9bit: default", "4bit: default"
        args.scaling.write_text(scaling(runs, shown), encoding="utf-8")
    if not args.curves and not args.scaling:
        print(tables(runs))


if __name__ == "__main__":
    main()
