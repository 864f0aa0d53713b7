"""Selective answering of several runs: whose confidences tell right answers from wrong ones best.

A run's area under the risk-coverage curve (AURC) of a confidence, minus that of the reference run,
on the same questions. Both get the same resamples of images, so that the interval is that of the
difference (paired).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ravqa.core.terminal import Columns
from ravqa.evaluation.schema import AURCDifference
from ravqa.evaluation.selective import aurc_difference, by_confidence, standing
from ravqa.metrics.statistics.intervals import Estimate
from ravqa.metrics.statistics.selective import aurc
from ravqa.runs.finished import FinishedRun, Id

TITLE = "Selective answering: AURC of each confidence, compared with the reference"
_DECIMALS = 4


@dataclass(frozen=True, slots=True)
class Selective:
    """AURC of one confidence in two runs, in percent; lower is better.

    Attributes:
        reference, run: their names.
        values: AURC of the reference, and of the run.
        difference: that of the run minus that of the reference.
    """

    confidence: str
    reference: str
    run: str
    values: tuple[float, float]
    difference: Estimate


def compared(
    runs: Mapping[str, FinishedRun], reference: str, ids: Mapping[Id, None], *, seed: int
) -> list[Selective]:
    """Compare each run with the reference, for every confidence that both have.

    Args:
        runs: by name; runs whose answers were not scored are passed over.
        ids: the questions to compare on.
    """
    known = {
        name: by_confidence({q: run.questions[q].confidences for q in ids})
        for name, run in runs.items()
        if all(run.questions[q].score is not None for q in ids)
    }
    images = [runs[reference].questions[q].image for q in ids]
    losses = {name: [1 - (runs[name].questions[q].score or 0) for q in ids] for name in known}
    found = []
    for name, own in known.items():
        for confidence, other in known.get(reference, {}).items():
            if name == reference or confidence not in own:
                continue
            mine = standing(ids, own[confidence]), losses[name]
            theirs = standing(ids, other), losses[reference]
            values = 100 * float(aurc(*theirs)), 100 * float(aurc(*mine))
            difference = aurc_difference(mine, theirs, images, seed=seed)
            found.append(Selective(confidence, reference, name, values, difference))
    return found


HEADER = ("", "AURC %", "reference's AURC %", "difference", "95 % interval")


def rows(found: Sequence[Selective]) -> list[list[str]]:
    """Return the rows below `HEADER`."""
    return [
        [
            f"{one.run}, {one.confidence}",
            f"{one.values[1]:.1f}",
            f"{one.values[0]:.1f}",
            f"{one.difference.value:+.1f}",
            one.difference.range(),
        ]
        for one in found
    ]


def printed(found: Sequence[Selective]) -> Columns:
    """Return the comparison for a terminal."""
    table = Columns(TITLE, ["The lower the AURC, the better."])
    table.names()
    for name in HEADER[1:]:
        table.numbers(name, width=13)
    for name, *numbers in rows(found):
        table.row(name, *numbers)
    return table


def as_json(found: Sequence[Selective]) -> list[AURCDifference]:
    """Return plain values for JSON."""
    return [
        {
            "confidence": one.confidence,
            "reference": one.reference,
            "run": one.run,
            "AURC_of_reference": round(one.values[0], _DECIMALS),
            "AURC": round(one.values[1], _DECIMALS),
            "difference": round(one.difference.value, _DECIMALS),
            "interval_95": one.difference.bounds(_DECIMALS),
        }
        for one in found
    ]
