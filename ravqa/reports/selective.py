"""Knowing when not to answer, in a run's report: tables and the risk-coverage curve."""

from __future__ import annotations

from ravqa.core.texts import number_of
from ravqa.evaluation.schema import SelectiveSection
from ravqa.metrics.statistics.intervals import Estimate
from ravqa.reports.charts import STYLES, Axis, Figure, Series, curves
from ravqa.reports.figures import condition_name, metric_name
from ravqa.reports.run import Run
from ravqa.reports.summary import Titled
from ravqa.runs.selective_tables import confidence_rows, outcome_rows

_TICKS = (20, 40, 60, 80, 100)


def selective_tables(run: Run) -> list[Titled]:
    """Return what became of the questions, and what each confidence on record is worth."""
    section = run.results.get("selective")
    if section is None:
        return []
    count = number_of(section["questions"], "question")
    found = [
        Titled(
            "Right, wrong and refused",
            outcome_rows(section, lambda condition: condition_name(run, condition)),
            f"{count}. What is refused: {section['refusals']}. An answer was found if "
            f"{section['answerable']}. Score: {section['truthfulness']}.",
        )
    ]
    if section["confidences"]:
        about = "; ".join(f"{n} is the {c['about']}" for n, c in section["confidences"].items())
        found.append(
            Titled(
                "Confidences",
                confidence_rows(section),
                f"{count}; right is {section['right']}. An AUROC of 50 % tells nothing; of AURC, "
                f"ECE and Brier score, less is better. Here {about}.",
            )
        )
    return found


def selective_figures(run: Run) -> list[Figure]:
    """Draw the risk-coverage curve of each confidence, with its band."""
    section = run.results.get("selective")
    if section is None or not section["confidences"]:
        return []
    return [risk_coverage(section, metric_name(run))]


def risk_coverage(section: SelectiveSection, metric: str) -> Figure:
    """Draw the risk at every coverage.

    Args:
        metric: readable name of the answer metric.
    """
    shown = list(section["confidences"].items())[:STYLES]
    coverages = [round(point["coverage"]) for point in shown[0][1]["curve"]]
    return curves(
        "Risk by coverage",
        "If only the questions with the highest confidence are answered: the risk of their answers "
        f"(100 minus {metric}) by the share of questions that are answered, with 95 % intervals.",
        coverages,
        [
            Series(
                name,
                style,
                [Estimate(point["risk"], *point["interval_95"]) for point in scores["curve"]],
            )
            for style, (name, scores) in enumerate(shown)
        ],
        x_name="coverage %",
        ticks=[tick for tick in _TICKS if tick in coverages],
        axis=Axis("%", high=100.0),
        logarithmic=False,
    )
