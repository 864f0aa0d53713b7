"""`ravqa power`: how many questions are needed to show a given difference, from existing runs.

With d_q the difference of two systems' scores on question q, the mean over n questions is normal
about the true difference x with variance v / n. A two-sided test at level alpha sees it with
probability 1 - beta if there are

    n = (z_(1 - alpha/2) + z_(1 - beta))^2 * v / x^2

questions (the paired sample-size formula: Lachin 1981, "Introduction to sample size determination
and power analysis for clinical trials", Controlled Clinical Trials 2; for model evaluations Miller
2024, "Adding error bars to evals", arXiv 2411.00640). Questions about one image are not
independent: v is n times the cluster-robust variance of the mean,

    v = n * m / (m - 1) * sum over images c of (sum over q in c of (d_q - mean))^2 / n^2,

with m the number of images, as in Miller. Without clusters v is the variance of d. So more
questions means more images, with as many questions per image as now.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from rich.console import Group, RenderableType
from rich.text import Text

from ravqa.core.errors import UserError
from ravqa.core.terminal import Columns
from ravqa.runs.console import Console
from ravqa.runs.finished import FinishedRun, Id, Measure, common_questions
from ravqa.studies.compare import open_runs
from ravqa.studies.options import PowerRequest

_NORMAL = NormalDist()
_FEW = 30  # images, below which the normal approximation is rough


@dataclass(frozen=True, slots=True)
class Spread:
    """How much a paired difference varies.

    Attributes:
        questions, clusters: how many it was measured on.
        mean: the observed difference.
        variance: v above, per question.
        design_effect: v divided by the variance of single differences: the cost of clustering.
    """

    questions: int
    clusters: int
    mean: float
    variance: float
    design_effect: float


def spread(
    differences: Mapping[Id, float] | Sequence[float],
    clusters: Mapping[Id, Hashable] | None = None,
) -> Spread:
    """Return the spread of paired differences.

    Args:
        differences: difference of each question.
        clusters: cluster of each question (its image); None for one cluster per question.

    Raises:
        ValueError: fewer than two clusters.
    """
    values = dict(
        differences.items() if isinstance(differences, Mapping) else enumerate(differences)
    )
    n = len(values)
    mean = math.fsum(values.values()) / n if n else 0.0
    sums: dict[Hashable, float] = {}
    for question, value in values.items():
        cluster = question if clusters is None else clusters[question]
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    m = len(sums)
    if m < 2:
        raise ValueError("a spread needs at least two clusters")
    variance = m / (m - 1) * math.fsum(s * s for s in sums.values()) / n
    single = math.fsum((value - mean) ** 2 for value in values.values()) / (n - 1)
    return Spread(n, m, mean, variance, variance / single if single else 1.0)


def questions_needed(
    difference: float, variance: float, *, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Return how many questions a paired test needs; see the module.

    Args:
        difference: difference to detect, in the unit of the scores.
        variance: variance of the paired difference, per question.
    """
    return max(2, math.ceil(_factor(power, alpha) ** 2 * variance / difference**2))


def detectable(
    questions: int, variance: float, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Return the smallest difference that this number of questions can show."""
    return _factor(power, alpha) * math.sqrt(variance / questions)


def _factor(power: float, alpha: float) -> float:
    return _NORMAL.inv_cdf(1 - alpha / 2) + _NORMAL.inv_cdf(power)


def power_of(request: PowerRequest, console: Console) -> list[tuple[str, Spread]]:
    """Compute and print; return the pairs' names and spreads.

    Raises:
        UserError: values out of range; runs that cannot be compared, or do not differ.
    """
    _check(request)
    measure = Measure.parse(request.metric)
    if not measure.in_percent:
        raise UserError(f"--metric {request.metric}: power is for metrics in percent")
    runs = open_runs(request.runs)
    if len(runs) == 1:
        [(name, run)] = runs.items()
        if not run.has_control:
            raise UserError(
                f"{name} has no control without retrieval: give two runs, or run it with "
                "--controls none"
            )
        runs = {f"{name}:none": FinishedRun(run.folder, "none"), name: run}
    (first, reference), *others = runs.items()
    pairs = []
    for name, run in others:
        ids = common_questions({first: reference, name: run}, intersect=request.common)
        pairs.append((f"{name} - {first}", _spread(measure, run, reference, ids, name, first)))
    console.out.print(_printed(request, measure.title(reference), pairs))
    return pairs


def _check(request: PowerRequest) -> None:
    for name, value in (("power", request.power), ("alpha", request.alpha)):
        if not 0 < value < 1:
            raise UserError(f"--{name} {value:g}: a number between 0 and 1 is needed")
    if request.power <= request.alpha:
        raise UserError(f"--power {request.power:g} is not above --alpha {request.alpha:g}")
    if request.comparisons < 1:
        raise UserError(f"--comparisons {request.comparisons}: at least one is needed")
    for value in request.differences:
        if not 0 < value <= 100:
            raise UserError(f"--difference {value:g}: points above 0, at most 100, are needed")


def _spread(
    measure: Measure,
    run: FinishedRun,
    reference: FinishedRun,
    ids: Mapping[Id, None],
    name: str,
    first: str,
) -> Spread:
    mine, theirs = run.values(measure), reference.values(measure)
    both = [q for q in ids if q in mine and q in theirs]
    if not both:
        raise UserError(f"{name} and {first} have no questions with {measure.key} in common")
    differences = {q: mine[q] - theirs[q] for q in both}
    try:
        found = spread(differences, run.images(both))
    except ValueError:
        raise UserError(f"{name} and {first} have questions about one image only") from None
    if not found.variance:
        raise UserError(
            f"{name} and {first} differ by the same {measure.key} on every question, so "
            "the spread is unknown"
        )
    return found


def _printed(
    request: PowerRequest, title: str, pairs: Sequence[tuple[str, Spread]]
) -> RenderableType:
    """Return a table for each pair: what was measured, and how many questions are needed."""
    alpha = request.alpha / request.comparisons
    level = f"two-sided alpha {request.alpha:g}"
    if request.comparisons > 1:
        level += f" / {request.comparisons}"
    notes = [
        "times more questions: as questions about one image are alike, so many times more are "
        "needed than if each had an image of its own.",
        f"detectable: the smallest difference that a paired test over images detects with power "
        f"{request.power:g}, {level}.",
        "needed for a difference of X: as many questions, with as many per image as now, for the "
        "same test to detect X.",
    ]
    if any(found.clusters < _FEW for _, found in pairs):
        notes.append(f"Fewer than {_FEW} images: the numbers are rough estimates.")
    tables = []
    for name, found in pairs:
        table = Columns(f"{title}: {name}")
        table.names()
        table.numbers("")
        table.row("questions", f"{found.questions:,}")
        table.row("images", f"{found.clusters:,}")
        table.row("difference", f"{found.mean:+.1f}")
        table.row("standard deviation", f"{math.sqrt(found.variance):.1f}")
        table.row("times more questions", f"{found.design_effect:.2f}")
        seen = detectable(found.questions, found.variance, power=request.power, alpha=alpha)
        table.row("detectable", f"{seen:.1f}")
        for x in request.differences:
            number = questions_needed(x, found.variance, power=request.power, alpha=alpha)
            table.row(f"needed for a difference of {x:g}", f"{number:,}")
        tables.append(table)
    return Group(*tables, *(Text(note, style="dim") for note in notes))
