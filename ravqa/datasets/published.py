"""Published M2KR scores, for comparison with your own results; not measured by this project."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ravqa.corpora.tables import lines_of
from ravqa.datasets.base import RetrievalMetric


@dataclass(frozen=True, slots=True)
class PublishedScore:
    """One number of a published table.

    Attributes:
        dataset: "m2kr" or "m2kr_cn".
        percent: the score on the subset's test split, 0 to 100.
        source: where it was published.
    """

    dataset: str
    model: str
    subset: str
    metric: RetrievalMetric
    percent: float
    source: str


@cache
def _all() -> tuple[PublishedScore, ...]:
    text = files("ravqa.datasets").joinpath("m2kr_published.csv").read_text(encoding="utf-8")
    return tuple(
        PublishedScore(
            dataset=row["dataset"],
            model=row["model"],
            subset=row["subset"],
            metric=RetrievalMetric(row["metric"], int(row["k"])),  # type: ignore[arg-type]
            percent=float(row["percent"]),
            source=row["source"],
        )
        for row in csv.DictReader(lines_of(text))
    )


def published_scores(dataset: str, subset: str | None = None) -> list[PublishedScore]:
    """Return the published scores of a benchmark ("m2kr", "m2kr_cn"), for one subset or all."""
    return [s for s in _all() if s.dataset == dataset and subset in {None, s.subset}]
