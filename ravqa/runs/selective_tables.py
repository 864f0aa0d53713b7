"""Tables of refusals, confidences and thresholds, for the console."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ravqa.core.terminal import Columns
from ravqa.evaluation.schema import Bounds, Estimated, SelectiveSection, ThresholdScores
from ravqa.metrics.statistics.intervals import Estimate

OUTCOMES = {
    "answered_right": "right",
    "answered_wrong": "wrong",
    "refused_answerable": "refused, answer found",
    "refused_rightly": "refused rightly",
    "refused_unknown": "refused, unknown",
    "unanswered": "no answer",
}
"""Headings of the outcomes of questions."""


def has_refusals(section: SelectiveSection) -> bool:
    """Return whether any condition has an answer that is a refusal."""
    return any(
        counts["refused_answerable"] + counts["refused_rightly"] + counts["refused_unknown"]
        for counts in section["outcomes"].values()
    )


def outcome_rows(
    section: SelectiveSection, name_of: Callable[[str], str]
) -> tuple[list[str], list[list[str]]]:
    """Return the headings of the outcomes that occur, and a row per condition.

    Args:
        name_of: the name of a condition.
    """
    found = section["outcomes"]
    shown = {
        key: heading
        for key, heading in OUTCOMES.items()
        if key not in ("refused_unknown", "unanswered")
        or any(counts[key] for counts in found.values())  # type: ignore[literal-required]
    }
    rows = []
    for condition, counts in found.items():
        score = section["scores"][condition]
        numbers = [f"{counts[key]:,}" for key in shown]  # type: ignore[literal-required]
        rows.append(
            [name_of(condition), *numbers, f"{score['value']:+.1f}", _range(score["interval_95"])]
        )
    return ["", *shown.values(), "+1/0/-1", "95 % interval"], rows


def outcome_table(section: SelectiveSection, name_of: Callable[[str], str], of: str) -> Columns:
    """Return a table of what became of the questions of each condition.

    Args:
        of: the dataset and its questions, for the title.
    """
    header, rows = outcome_rows(section, name_of)
    return _table(f"Right, wrong and refused: {of}", header, rows)


def confidence_rows(section: SelectiveSection) -> tuple[list[str], list[list[str]]]:
    """Return the headings and a row per confidence."""
    rows = []
    for name, scores in section["confidences"].items():
        rows.append(
            [
                name,
                *_pair(scores["AUROC"]),
                *_pair(scores["AURC"]),
                _value(scores.get("ECE")),
                _value(scores.get("Brier")),
            ]
        )
    return ["", "AUROC %", "95 % interval", "AURC %", "95 % interval", "ECE %", "Brier %"], rows


def confidence_table(section: SelectiveSection, of: str) -> Columns:
    """Return a table of what each confidence is worth."""
    table = _table(f"Confidences, right against wrong: {of}", *confidence_rows(section))
    table.notes.append(
        "An AUROC of 50 tells nothing; of AURC, ECE and Brier score, less is better."
    )
    return table


def threshold_table(scores: Sequence[ThresholdScores], calibrated_on: str, of: str) -> Columns:
    """Return a table of thresholds that were chosen on other questions."""
    rows = [
        [
            one["confidence"],
            f"{one['target_risk']:g}",
            "none" if one["threshold"] is None else f"{one['threshold']:.4g}",
            Estimate(one["coverage"]["value"], *one["coverage"]["interval_95"]).text(),
            *_pair(one["risk"]),
        ]
        for one in scores
    ]
    header = ["", "target risk %", "threshold", "coverage %", "risk %", "95 % interval"]
    table = _table(f"Selective answering: {of}", header, rows)
    table.notes.append(f"Thresholds were chosen on {calibrated_on}.")
    return table


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Columns:
    table = Columns(title)
    table.names()
    for name in header[1:]:
        table.numbers(name, width=13 if "interval" in name else 8)
    for row in rows:
        table.row(*row)
    return table


def _value(found: Estimated | None) -> str:
    return "-" if found is None else f"{found['value']:.1f}"


def _pair(found: Estimated | None) -> tuple[str, str]:
    return _value(found), "-" if found is None else _range(found["interval_95"])


def _range(bounds: Bounds) -> str:
    return Estimate(0, *bounds).range()
