"""The report of a training run: its curves, validations and settings on one page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ravqa.metrics.statistics.intervals import Estimate
from ravqa.reports.charts import Axis, Figure, Series, curves
from ravqa.reports.page import REPORT, render, write_page

_POINTS = 200  # of a curve
_TICKS = 6
_NOT_CURVES = frozenset({"step", "seconds", "validation", "learning_rate", "gradient"})


def write_report(
    folder: Path, results: Mapping[str, Any], figures: Sequence[Mapping[str, Any]]
) -> Path:
    """Write `report.html` into a training's folder; return its path.

    Args:
        results: the content of results.json.
        figures: the lines of metrics.jsonl.
    """
    steps = [line for line in figures if "validation" not in line]
    validations = [line for line in figures if "validation" in line]
    parameters, best = results["parameters"], results["best"]
    facts = {
        "steps": f"{results['steps']:,} of {results['planned_steps']:,}"
        + (", stopped early" if results["stopped_early"] else ""),
        "trained parameters": f"{parameters['trained']:,} of {parameters['all']:,}",
        "time in steps": f"{sum(line['seconds'] for line in steps):,.0f} s",
    }
    if best is not None:
        value = best["figures"][results["metric"]]
        facts["best validation"] = f"{results['metric']} {value:.4g} after step {best['step']:,}"
    page = render(
        "training.html.jinja",
        title=f"Training of a {results['training']}",
        facts=facts,
        notes=list(results.get("notes", ())),
        figures=list(_figures(steps, validations)),
        validations=_table(validations),
        settings=(folder / "config.yaml").read_text(encoding="utf-8"),
    )
    write_page(folder / REPORT, page)
    return folder / REPORT


def _figures(
    steps: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]
) -> Iterable[Figure]:
    names = [name for name in (steps[0] if steps else ()) if name not in _NOT_CURVES]
    places = _groups(len(steps))
    if len(places) > 1:
        caption = "Mean over the steps of each point." if len(steps) > _POINTS else "At each step."
        yield _curve(
            "Training loss",
            caption,
            [steps[g.stop - 1]["step"] for g in places],
            {name: [_mean(line.get(name) for line in steps[g]) for g in places] for name in names},
        )
        yield _curve(
            "Learning rate",
            "In millionths; the highest of all parameters' at its step.",
            [steps[g.stop - 1]["step"] for g in places],
            {"millionths": [1e6 * steps[g.stop - 1]["learning_rate"] for g in places]},
            decimals=3,
        )
    # Step 0, before training, has no place on the axis: it is in the table.
    later = [line for line in validations if line["step"] > 0]
    if len(later) > 1:
        yield _curve(
            "Validation",
            "Figures of the validation data.",
            [v["step"] for v in later],
            {name: [v["validation"].get(name) for v in later] for name in later[0]["validation"]},
        )


def _curve(
    title: str,
    caption: str,
    xs: Sequence[int],
    values: Mapping[str, Sequence[float | None]],
    decimals: int = 4,
) -> Figure:
    ticks = sorted({xs[round(i * (len(xs) - 1) / (_TICKS - 1))] for i in range(_TICKS)})
    series = [
        Series(name, i, [None if v is None else Estimate(v) for v in row])
        for i, (name, row) in enumerate(values.items())
    ]
    return curves(
        title,
        caption,
        xs,
        series,
        x_name="step",
        ticks=_apart(ticks),
        axis=Axis(title.lower(), decimals=decimals),
    )


def _apart(ticks: Sequence[int]) -> list[int]:
    """Leave out ticks whose labels would overlap on the logarithmic axis."""
    kept = [ticks[-1]]
    for tick in reversed(ticks[:-1]):
        if tick * 1.5 <= kept[-1]:
            kept.append(tick)
    return kept[::-1]


def _groups(size: int) -> list[slice]:
    """Return at most `_POINTS` slices of about the same length that cover `size` lines."""
    count = min(size, _POINTS)
    ends = [round((i + 1) * size / count) for i in range(count)]
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _table(validations: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for line in validations for name in line["validation"]))
    rows = [
        [str(line["step"]), *(_shown(line["validation"].get(name)) for name in names)]
        for line in validations
    ]
    return ["step", *names], rows


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
