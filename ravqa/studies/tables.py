"""Runs side by side: a row per run, estimates with intervals, differences to a reference.

Intervals and tests resample images (`statistics.intervals`). The p-values of one metric on one
dataset are corrected together for the number of runs compared, by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ravqa.core.texts import number_of
from ravqa.metrics.statistics.intervals import MIN_CLUSTERS, Estimate, holm, why_none
from ravqa.reports.study import Difference, Variant
from ravqa.runs.finished import (
    COST,
    COSTS,
    SECONDS,
    TOKENS,
    FinishedRun,
    Id,
    Measure,
    common_questions,
)

_MONEY = Measure(COST)

CACHED = "*"
"""Mark of the seconds of a run that took some of its work from the cache."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A measure of one run.

    Attributes:
        questions: number of questions of the estimate.
        difference: difference to the reference; None for the reference itself, for seconds and for
            costs.
        compared: number of questions of the difference.
        cached: for seconds, the largest share of a stage that came from the cache, 0 to 1.
    """

    estimate: Estimate
    questions: int
    difference: Difference | None = None
    compared: int = 0
    cached: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One run, or why it is missing.

    Attributes:
        run: its folder.
        cells: cells by the measure's name; those that the run lacks are left out.
    """

    name: str
    reference: bool = False
    run: Path | None = None
    cells: Mapping[str, Cell] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Runs on one dataset.

    Attributes:
        title: dataset and split.
        titles: titles of the measures by name; these are the columns.
        questions, images: number common to all runs.
        notes: what a reader must know of the numbers.
    """

    title: str
    titles: Mapping[str, str]
    questions: int
    images: int
    rows: Sequence[Row]
    notes: Sequence[str]


def build_table(
    runs: Mapping[str, FinishedRun],
    reference: str,
    measures: Sequence[Measure] = (),
    *,
    errors: Mapping[str, str] | None = None,
    order: Sequence[str] | None = None,
    ids: Mapping[Id, None] | None = None,
    seed: int = 0,
    title: str | None = None,
) -> Table:
    """Build the table of runs on one dataset.

    Args:
        runs: runs by name.
        reference: the run that the others are compared with; if it is missing, the table has no
            differences.
        measures: the columns; empty for the first run's default ones.
        errors: why other runs are missing, by name.
        order: names in the order of the rows; runs come before errors if None.
        ids: the questions to compare on; those common to all runs if None.
        title: replaces dataset and split.

    Raises:
        UserError: the runs cannot be compared.
    """
    errors = errors or {}
    if not runs:
        rows = [Row(name, error=error) for name, error in errors.items()]
        return Table(title or "", {}, 0, 0, rows, [])
    first = next(iter(runs.values()))
    ids = common_questions(runs, intersect=True) if ids is None else ids
    measures = list(measures) or _default_measures(runs)
    priced = {run.currency: run for run in runs.values() if run.currency and run.values(_MONEY)}
    several = len(priced) > 1
    if several:
        measures = [measure for measure in measures if measure != _MONEY]
    cells = {name: _cells(run, measures, ids, seed) for name, run in runs.items()}
    if reference in runs:
        _compare(cells, runs, reference, measures, ids, seed)
    paid = next(iter(priced.values()), first)
    titles = {
        measure.key: measure.title(paid if measure == _MONEY else first)
        for measure in measures
        if any(measure.key in found for found in cells.values())
    }
    images = len({first.questions[q].image for q in ids})
    rows = [
        Row(name, name == reference, runs[name].folder, cells[name])
        if name in runs
        else Row(name, name == reference, error=errors[name])
        for name in order or [*runs, *errors]
        if name in runs or name in errors
    ]
    return Table(
        title=title or f"{first.label}, split {first.split}",
        titles=titles,
        questions=len(ids),
        images=images,
        rows=rows,
        notes=[
            *(f"No run has {m.key}." for m in measures if m.key not in titles),
            *([f"No {COST}: the runs have prices in {' and '.join(sorted(priced))}."] * several),
            *_notes(runs, rows, ids, images, reference, titles),
        ],
    )


def _default_measures(runs: Mapping[str, FinishedRun]) -> list[Measure]:
    """Return those of the first run that retrieves: another one has no recall."""
    found = [run for run in runs.values() if run.retrieves] or list(runs.values())
    return found[0].default_measures()


def _cells(
    run: FinishedRun, measures: Sequence[Measure], ids: Mapping[Id, None], seed: int
) -> dict[str, Cell]:
    cells = {}
    for measure in measures:
        estimate = run.estimate(measure, ids, seed)
        if estimate is not None:
            timed = measure.name == SECONDS
            cells[measure.key] = Cell(
                estimate,
                questions=sum(q in ids for q in run.values(measure)),
                cached=run.cached_share(ids) if timed else 0.0,
            )
    return cells


def _compare(
    cells: Mapping[str, dict[str, Cell]],
    runs: Mapping[str, FinishedRun],
    reference: str,
    measures: Sequence[Measure],
    ids: Mapping[Id, None],
    seed: int,
) -> None:
    """Fill in the cells' differences to the reference, except for seconds and costs."""
    for measure in measures:
        if not measure.in_percent:
            continue
        tests = {}
        for name, run in runs.items():
            if name != reference and measure.key in cells[name]:
                compared = run.against(runs[reference], measure, ids, seed)
                if compared is not None:
                    tests[name] = compared
        corrected = holm([test.p_value for _, test in tests.values()])
        for (name, (difference, test)), p in zip(tests.items(), corrected, strict=True):
            cells[name][measure.key] = Cell(
                cells[name][measure.key].estimate,
                cells[name][measure.key].questions,
                Difference(
                    difference,
                    test.p_value,
                    p,
                    wins=test.wins,
                    losses=test.losses,
                ),
                compared=test.wins + test.losses + test.ties,
            )


def _notes(
    runs: Mapping[str, FinishedRun],
    rows: Sequence[Row],
    ids: Mapping[Id, None],
    images: int,
    reference: str,
    titles: Mapping[str, str],
) -> list[str]:
    notes = []
    fewer = {
        name: len(run.questions) for name, run in runs.items() if len(run.questions) > len(ids)
    }
    if fewer:
        asked = ", ".join(f"{name} asked {number:,}" for name, number in fewer.items())
        notes.append(
            f"Numbers are over the {number_of(len(ids), 'question')} common to all runs ({asked})."
        )
    for name, run in runs.items():
        failed = sum(run.questions[q].failed for q in ids)
        if failed:
            what = number_of(failed, "question was", "questions were")
            notes.append(f"{name}: {what} not answered, which counts as wrong.")
    tests = [c for row in rows for c in row.cells.values() if c.difference is not None]
    if tests:
        notes.append(
            f"Intervals are 95 %, over images. Differences are from {reference!r}; p is from a "
            "paired permutation test over images, corrected by Holm's method for the runs "
            "compared. Intervals are not corrected."
        )
    elif reference not in runs:
        notes.append(f"There is no run {reference!r}: nothing is compared.")
    lacking = {key for row in rows for key, c in row.cells.items() if not c.estimate.has_interval}
    differences = [c.difference for c in tests if c.difference and not c.difference.same]
    notes += why_none(
        images,
        of_score=bool(lacking - {SECONDS, *COSTS}),
        of_difference=not all(found.estimate.has_interval for found in differences),
    )
    if SECONDS in lacking:
        notes.append(
            f"Seconds without an interval: fewer than {MIN_CLUSTERS} batches were timed, or all "
            "took the same time."
        )
    if any(cell.cached for row in rows for cell in row.cells.values()):
        notes.append(
            f"{CACHED} A stage came from the cache, wholly or in part, and so took less time than "
            "without it."
        )
    if SECONDS in titles:
        notes.append(
            "Seconds exclude the time to load models and to encode passages; their intervals "
            "are over the batches that were timed."
        )
    if titles.keys() & {TOKENS, COST}:
        notes.append(
            "Tokens are those of prompts and completions. Tokens and money include what results "
            "from the cache had cost when they were made."
        )
    return [*notes, *_stand_ins(runs)]


def _stand_ins(runs: Mapping[str, FinishedRun]) -> list[str]:
    """Return notes on stand-ins, and in which runs they occur if not in all."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, run in runs.items():
        for part, what in run.stand_ins.items():
            found.setdefault((part, what), []).append(name)
    notes = []
    for (part, what), names in found.items():
        where = "" if len(names) == len(runs) else f" (in {len(names)} of {len(runs)} runs)"
        notes.append(f"Stand-in {part}: {what}{where}.")
    return notes


def variants(table: Table) -> list[Variant]:
    """Return the rows for the study's report, which has no marks for single cells."""
    cached = any(cell.cached for row in table.rows for cell in row.cells.values())
    titles = {
        key: f"{title}\u00a0{CACHED}" if cached and key == SECONDS else title
        for key, title in table.titles.items()
    }
    return [
        Variant(
            name=row.name,
            run=row.run,
            reference=row.reference,
            metrics={titles[key]: cell.estimate for key, cell in row.cells.items()},
            differences={
                titles[key]: cell.difference
                for key, cell in row.cells.items()
                if cell.difference is not None
            },
            cost=None if cost is None else (titles[cost], row.cells[cost].estimate),
            error=row.error,
        )
        for row in table.rows
        for cost in [next((key for key in (COST, TOKENS) if key in row.cells), None)]
    ]
