"""Tables of comparisons, studies and sample sizes at 80 columns and others, with long names."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from narrow import fits, terminal

from ravqa.metrics.statistics.intervals import Estimate
from ravqa.reports.study import SAME, Difference
from ravqa.runs.stages import STAGES
from ravqa.studies import compare, run
from ravqa.studies.compare import Breakdown, Outcomes
from ravqa.studies.formats import printed
from ravqa.studies.options import PowerRequest
from ravqa.studies.power import Spread, _printed
from ravqa.studies.tables import Cell, Row, Table

LONG = "okvqa-bundled-pipeline-rerank-cross-encoder-20261130-231500"
NAMES = ("tags, over all 5, thorough", f"{LONG}:wrong-image", "no tags")
WIDTHS = pytest.mark.parametrize("width", [80, 140])


def shown(what, width):
    screen = terminal(width)
    screen.print(what)
    return fits(screen.file.getvalue(), width)


def cells(i):
    change = Difference(Estimate(-10.1, -17.2, -10.5), 0.01, 0.0315, wins=2, losses=9)
    same = Difference(Estimate(0.0), 1.0, 1.0, wins=0, losses=0)
    return {
        "score": Cell(Estimate(82.4, 74.6, 100.0), 5046, change if i else None),
        "PRRecall@5": Cell(Estimate(57.4, 47.1, 67.5), 5046, same if i else None),
        "ArticleRecall@500": Cell(Estimate(100.0), 5046, None),
        "seconds": Cell(Estimate(0.1734, 0.1512, 0.1999), 5046, cached=1.0),
    }


@WIDTHS
def test_runs_side_by_side_fit(width):
    titles = {
        "score": "InfoSeek score %",
        "PRRecall@5": "PRRecall@5 %",
        "ArticleRecall@500": "ArticleRecall@500 %",
        "seconds": "seconds per question",
    }
    rows = [Row(name, i == 0, cells=cells(i)) for i, name in enumerate(NAMES)]
    rows.append(Row("broken", error="the index has no vectors " * 5))
    table = Table("OK-VQA, split val2014", titles, 5046, 4960, rows, ["A note. " * 30])
    lines = shown(printed(table), width)
    text = " ".join(" ".join(lines).split())
    change = "82.4 [74.6, 100.0] -10.1 [-17.2, -10.5] 0.0315"
    assert f"no tags {change}" in text
    assert "no tags 57.4 [47.1, 67.5] same " in text
    assert f"same: {SAME}." in text
    assert "no tags 100.0 - " in text
    assert "no tags 0.173 * [0.151, 0.200]" in text
    assert "broken failed: the index has no vectors" in text
    assert text.count("(reference)") == len(titles)


@WIDTHS
def test_breakdowns_fit(width):
    outcomes = Outcomes(1234, 1234, 1234, 1344)
    groups = {
        "all": {"all questions": outcomes},
        "question type": {"Vehicles and Transportation": outcomes},
        "answer strings": {compare.READ: outcomes},
    }
    lines = shown(compare._printed(Breakdown(NAMES[0], LONG, groups)), width)
    every = [line.split() for line in lines if line.split()[2:3] == ["5,046"]]
    assert ["all", "questions", "5,046", "1,234", "1,234", "1,234", "1,344"] in every


@WIDTHS
def test_sample_sizes_fit(width):
    request = PowerRequest(["a", "b"], differences=(0.1, 2, 5), comparisons=11)
    pairs = [(f"{name} - {LONG}", Spread(5046, 28, -10.1, 1600.0, 1.25)) for name in NAMES]
    lines = shown(_printed(request, "InfoSeek score %", pairs), width)
    text = " ".join(" ".join(lines).split())
    assert text.count("questions 5,046 images 28 difference -10.1 standard deviation 40.0") == 3
    assert "alpha 0.05 / 11" in text
    assert "needed for a difference of 2 " in text
    assert text.count("Fewer than 30 images") == 1


@dataclass(eq=False)
class Planned:
    """What the table reads of a planned run."""

    variant: str
    dataset: str = "OK-VQA"
    reader: str = ""


@WIDTHS
def test_what_a_study_would_run_fits(width):
    runs = [Planned(name) for name in NAMES]
    plan = SimpleNamespace(
        title="decision", variants=NAMES, runs=runs, datasets=["OK-VQA", "b"], reference=NAMES[1]
    )
    folder = SimpleNamespace(state=lambda one: run.FINISHED if one is runs[2] else run.NEW)
    keys = {one: {stage: f"{stage}{len(one.variant)}" for stage in STAGES} for one in runs}
    lines = shown(run._dry(plan, folder, keys), width)
    assert lines[2].split() == ["dataset", "variant", *STAGES]
    [last] = [line.split() for line in lines if "no tags" in line]
    assert last == ["OK-VQA", "no", "tags", "finished"]
