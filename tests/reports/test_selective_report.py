"""Refusals and confidences in a report: the numbers of the results, and the curve's places."""

import json
import re
from xml.etree import ElementTree

import pytest
from hand_runs import answered, write

from ravqa.evaluation.selective import selective_section
from ravqa.metrics.statistics.intervals import Estimate
from ravqa.reports.charts import Series, curves
from ravqa.reports.report import write_report
from ravqa.reports.run import read_run
from ravqa.reports.selective import selective_figures, selective_tables


@pytest.fixture
def folder(tmp_path):
    """A run of 24 questions: every third is right, and one of the others is refused."""
    samples = [
        answered(
            i,
            float(i % 3 == 0),
            answer="i don't know" if i == 1 else "a",
            log_prob=-0.1 * i,
            hits=[["p1", float(i % 5)]],
        )
        for i in range(24)
    ]
    folder = write(tmp_path / "run", samples)
    results = json.loads((folder / "results.json").read_text())
    results["answers"]["conditions"] = {
        "main": {
            "score": 33.3,
            "interval_95": [None, None],
            "raw": None,
            "groups": {},
            "unanswered": [],
            "unjudged": [],
            "cut": {"passages": 0, "questions": 0},
            "exact_match": {"1": 33.3},
            "hits": None,
        }
    }
    results["selective"] = selective_section(
        results["answers"], {"main": {s["question_id"]: s for s in samples}}, "flmr", seed=0
    )
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_tables_have_the_numbers_of_the_results(folder):
    run = read_run(folder)
    scores = run.results["selective"]["confidences"]["log_prob"]
    outcomes, confidences = selective_tables(run)
    low, high = run.results["selective"]["scores"]["main"]["interval_95"]
    assert outcomes.table[1] == [
        ["with retrieval", "8", "15", "0", "1", "-29.2", f"[{low:.1f}, {high:.1f}]"]
    ]
    assert "Score: +1 for a right answer, 0 for a refusal or no answer, -1" in outcomes.caption
    row = dict(zip(confidences.table[0][1:2], confidences.table[1][0][1:2], strict=True))
    assert confidences.table[1][0][0] == "log_prob"
    assert row == {"AUROC %": f"{scores['AUROC']['value']:.1f}"}
    assert confidences.caption.endswith(
        "Here log_prob is the log-probability of the answer under the decision rule; "
        "retrieval_score is the score of the first retrieved passage."
    )


def test_the_curve_has_the_risks_of_the_results(folder):
    run = read_run(folder)
    [figure] = selective_figures(run)
    assert figure.header == ["coverage %", "log_prob", "retrieval_score"]
    for name, column in (("log_prob", 1), ("retrieval_score", 2)):
        curve = run.results["selective"]["confidences"][name]["curve"]
        assert [row[column].split()[0] for row in figure.rows] == [
            f"{p['risk']:.1f}" for p in curve
        ]
    assert figure.rows[-1][0] == "100"


def test_the_page_has_both_and_an_older_run_neither(folder):
    page = write_report(folder, match=0).read_text()
    assert re.findall("<h[23]>(Right, wrong and refused|Confidences|Risk by coverage)<", page) == [
        *("Right, wrong and refused", "Confidences", "Risk by coverage")
    ]
    results = json.loads((folder / "results.json").read_text())
    del results["selective"]
    (folder / "results.json").write_text(json.dumps(results))
    run = read_run(folder)
    assert selective_tables(run) == []
    assert selective_figures(run) == []


def test_an_axis_may_be_linear():
    series = [Series("a", 0, [Estimate(10), Estimate(20), Estimate(40)])]
    figure = curves(
        "T", "C.", [25, 50, 100], series, x_name="x", ticks=[50, 100], logarithmic=False
    )
    root = ElementTree.fromstring(str(figure.svg))
    line = next(root.iter("polyline")).get("points")
    first, middle, last = (float(point.split(",")[0]) for point in line.split())
    assert last - middle == pytest.approx(2 * (middle - first), abs=0.02)
    assert middle - 38 == pytest.approx((last - 38) / 2, abs=0.02)
