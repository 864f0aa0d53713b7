"""Report of a study or comparison: its table, and every variant beside the reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ravqa.metrics.statistics.intervals import Estimate
from ravqa.reports.charts import Axis, Figure, Series, dots, scatter
from ravqa.reports.page import REPORT, Table, render, write_page

SAME = "same for every question"
"""Shown for a difference to which no question contributes: an interval of 0 to 0 says nothing."""
COUNTED = ("requests", "tokens")
"""How the names of metrics begin that are counts."""
_CAPTION = (
    "Paired on the same questions. The 95 % intervals are not corrected for the number of variants "
    "(p in the table is); one that contains 0 does not show that there is no difference."
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A variant's metric minus the reference's.

    Attributes:
        estimate: the difference with its 95 % interval.
        p_value: p-value of the paired test.
        p_corrected: the same, corrected for the number of comparisons by Holm's method.
        wins, losses: questions on which the variant is better, worse, if they were counted.
    """

    estimate: Estimate
    p_value: float | None = None
    p_corrected: float | None = None
    wins: int | None = None
    losses: int | None = None

    @property
    def same(self) -> bool:
        """Return whether no question differs; a difference of 0 may also be wins and losses."""
        return self.wins == 0 == self.losses


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of a study.

    Attributes:
        dataset: the dataset that it ran on, if the study has several: each has its own figures.
        run: folder of its run, whose own report is linked.
        reference: whether the others are compared with it.
        metrics: metrics by readable name ("VQA accuracy %"), the same for all variants.
        differences: differences by the same names.
        cost: the name and the value of what a question cost, if that is known.
        error: why numbers are missing.
    """

    name: str
    dataset: str = ""
    run: Path | None = None
    reference: bool = False
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    cost: tuple[str, Estimate] | None = None
    error: str | None = None


def write_study_report(
    folder: Path,
    title: str,
    variants: Sequence[Variant],
    *,
    facts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    tables: Mapping[str, Table] | None = None,
) -> Path:
    """Write `report.html` into a study's folder; return its path.

    Args:
        facts: lines below the title, as "dataset": "OK-VQA, val2014".
        notes: sentences that a reader must know: stand-ins, samples, what failed.
        tables: more tables by title, such as a breakdown; header and rows.

    Raises:
        OSError: the file cannot be written.
    """
    datasets: dict[str, list[Variant]] = {}
    for variant in variants:
        datasets.setdefault(variant.dataset, []).append(variant)
    names = _names(variants)
    page = render(
        "study.html.jinja",
        title=title,
        facts=dict(facts or {}),
        notes=list(notes),
        header=["", *names],
        groups={name: [_row(folder, v, names) for v in own] for name, own in datasets.items()},
        figures={name: found for name, own in datasets.items() if (found := _figures(own))},
        tables=dict(tables or {}),
    )
    path = folder / REPORT
    write_page(path, page)
    return path


def _names(variants: Sequence[Variant]) -> list[str]:
    """Return all metrics' names, in order of first appearance."""
    return list(dict.fromkeys(name for variant in variants for name in variant.metrics))


def _row(folder: Path, variant: Variant, names: Sequence[str]) -> dict[str, object]:
    cells = []
    for name in names:
        value, difference = variant.metrics.get(name), variant.differences.get(name)
        cells.append(
            {
                "name": name,
                "value": f"{value.value:.{_decimals(name)}f}" if value else "",
                "interval": value.text(_decimals(name)).partition(" ")[2] if value else "",
                "difference": _difference(difference, _decimals(name)) if difference else "",
            }
        )
    return {
        "name": variant.name,
        "link": _link(folder, variant.run),
        "reference": variant.reference,
        "cells": cells,
        "error": variant.error,
    }


def _difference(difference: Difference, decimals: int) -> str:
    if difference.same:
        return SAME
    parts = [f"{difference.estimate.value:+.{decimals}f}"]
    interval = difference.estimate.text(decimals).partition(" ")[2]
    parts += [interval] if interval else []
    corrected = difference.p_corrected is not None
    p = difference.p_corrected if corrected else difference.p_value
    if p is not None:
        name = "Holm p" if corrected else "p"
        parts.append(f"{name} {p:.4f}" if p >= 0.0001 else f"{name} < 0.0001")
    return " ".join(parts)


def _link(folder: Path, run: Path | None) -> str | None:
    """Return a relative link to a run's report, if there is one."""
    if run is None or not (run / REPORT).is_file():
        return None
    path = Path(os.path.relpath(run / REPORT, folder))
    return quote(path.as_posix(), errors="surrogateescape")


def _figures(variants: Sequence[Variant]) -> list[Figure]:
    """Draw each metric of one dataset's variants, and its difference to the reference."""
    figures = []
    for name in _names(variants):
        shown = [v for v in variants if name in v.metrics]
        decimals = _decimals(name)
        top = 100.0 if name.endswith("%") else 0.0
        labels = [v.name + (" (reference)" if v.reference else "") for v in shown]
        figures.append(
            dots(
                name,
                f"{name} of every variant, with 95 % intervals where they are known.",
                labels,
                [Series(name, 0, [v.metrics[name] for v in shown])],
                x_name="variant",
                axis=Axis(name, high=top, decimals=decimals),
            )
        )
        tested = [v for v in shown if name in v.differences]
        compared = [v for v in tested if not v.differences[name].same]
        if compared:
            figures.append(
                dots(
                    f"{name}: difference from the reference",
                    _CAPTION + _left_out([v.name for v in tested if v not in compared]),
                    [v.name for v in compared],
                    [Series("difference", 1, [v.differences[name].estimate for v in compared])],
                    x_name="variant",
                    axis=Axis(f"{name}, variant minus reference", decimals=decimals),
                )
            )
    against = _against_cost(variants)
    return [*figures, *([against] if against else [])]


def _against_cost(variants: Sequence[Variant]) -> Figure | None:
    """Draw the first metric in percent against what a question costs; None for fewer than two."""
    name = next((name for name in _names(variants) if name.endswith("%")), "")
    found = [(v, *v.cost, v.metrics[name]) for v in variants if v.cost and name in v.metrics]
    if not found:
        return None
    kind = found[0][1]  # money and tokens are not drawn on one axis
    shown = [(v, x, y) for v, own, x, y in found if own == kind]
    if len(shown) < 2:
        return None
    drawn = [v for v, _, _ in shown]
    lacking = [v.name for v in variants if v.metrics and v not in drawn]
    why = f" Not drawn, since their cost is not known: {'; '.join(lacking)}." if lacking else ""
    return scatter(
        f"{name} against {kind}",
        f"{name} (upwards) against {kind} (to the right), with 95 % intervals where they are known."
        + why,
        [v.name + (" (reference)" if v.reference else "") for v, _, _ in shown],
        [x for _, x, _ in shown],
        [y for _, _, y in shown],
        across=Axis(kind, decimals=_decimals(kind)),
        up=Axis(name),
    )


def _left_out(names: Sequence[str]) -> str:
    return f" Not drawn, since {SAME}: {'; '.join(names)}." if names else ""


def _decimals(name: str) -> int:
    if name.endswith("%") or name.startswith((*COUNTED,)):
        return 1
    return 3 if name.startswith("seconds") else 6  # money
