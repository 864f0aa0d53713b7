"""Figures and the pages around them: their numbers, their places, and that text stays text."""

import json
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.metrics.statistics.intervals import Estimate
from ravqa.reports.charts import (
    PERCENT,
    STYLES,
    WIDTH,
    Axis,
    Series,
    columns,
    curves,
    dots,
    mark_svg,
    scatter,
    shares,
)
from ravqa.reports.page import render, safe_json
from ravqa.reports.study import Difference, Variant, write_study_report

HOSTILE = "</script><script>alert(1)</script>\u2028\"' onload=x & <b>"


def titles(figure):
    """What is said beside every mark."""
    root = ElementTree.fromstring(str(figure.svg))
    return [element.text for element in root.iter("title")]


def test_curves_draw_each_value_at_its_place():
    values = [Estimate(20, 10, 40), Estimate(50, 45, 55), None, Estimate(100, 100, 100)]
    figure = curves(
        "T", "C.", [1, 5, 7, 20], [Series("a", 0, values)], x_name="K", ticks=[1, 5, 20]
    )
    root = ElementTree.fromstring(str(figure.svg))
    line = next(root.iter("polyline")).get("points")
    points = [tuple(map(float, point.split(","))) for point in line.split()]
    grid = {
        float(text.text.rstrip("%")): float(text.get("y")) - 4
        for text in root.iter("text")
        if text.text.endswith("%")
    }
    assert set(grid) == {0, 20, 40, 60, 80, 100}
    assert [y for _, y in points] == pytest.approx([grid[20], (grid[40] + grid[60]) / 2, grid[100]])
    ticks = {
        int(text.text): float(text.get("x")) for text in root.iter("text") if text.text.isdigit()
    }
    assert [x for x, _ in points] == pytest.approx([ticks[1], ticks[5], ticks[20]], abs=0.01)
    assert titles(figure) == [
        "a, K 1: 20.0 [10.0, 40.0]",
        "a, K 5: 50.0 [45.0, 55.0]",
        "a, K 20: 100.0 [100.0, 100.0]",
    ]
    assert figure.rows == [
        ["1", "20.0 [10.0, 40.0]"],
        ["5", "50.0 [45.0, 55.0]"],
        ["7", ""],
        ["20", "100.0 [100.0, 100.0]"],
    ]


def test_columns_are_as_high_as_their_values():
    series = [
        Series("a", 0, [Estimate(25), Estimate(0)]),
        Series("b", 1, [Estimate(50, 40, 60), None]),
    ]
    figure = columns("T", "C.", ["x", "y"], series, x_name="rank", counts=[3, 1200])
    root = ElementTree.fromstring(str(figure.svg))
    heights = [float(bar.get("height")) for bar in root.iter("rect")]
    assert heights == pytest.approx([heights[1] / 2, heights[1], 0])
    assert figure.header == ["rank", "questions", "a", "b"]
    assert figure.rows == [["x", "3", "25.0", "50.0 [40.0, 60.0]"], ["y", "1,200", "0.0", ""]]
    assert figure.legend == [("a", 0), ("b", 1)]


def test_dots_stand_left_and_right_of_zero():
    series = [Series("d", 1, [Estimate(-5, -10, 0), Estimate(10, 5, 15)])]
    figure = dots("T", "C.", ["x", "y"], series, x_name="v", axis=Axis("points"))
    root = ElementTree.fromstring(str(figure.svg))
    zero = next(line for line in root.iter("line") if line.get("class") == "zero")
    spans = [line for line in root.iter("line") if "span" in line.get("class")]
    x1, x2 = ([float(s.get(k)) for s in spans] for k in ("x1", "x2"))
    assert x2[0] == pytest.approx(float(zero.get("x1")))
    assert x1[0] < x2[0] < x1[1] < x2[1]
    assert figure.legend == []


def test_scattered_marks_stand_at_both_of_their_values():
    xs = [Estimate(100, 80, 120), Estimate(400)]
    ys = [Estimate(40, 35, 45), Estimate(60, 50, 70)]
    figure = scatter("T", "C.", ["a", "b & c"], xs, ys, across=Axis("tokens"), up=Axis("s %"))
    root = ElementTree.fromstring(str(figure.svg))
    spans = [line for line in root.iter("line") if "span" in line.get("class")]
    x1, x2, y1, y2 = (
        [float(span.get(name)) for span in spans] for name in ("x1", "x2", "y1", "y2")
    )
    level = [i for i in range(len(spans)) if y1[i] == y2[i]]
    upright = [i for i in range(len(spans)) if x1[i] == x2[i]]
    assert (len(level), len(upright)) == (1, 2)  # one cost has no interval
    texts = {text.text: text for text in root.iter("text")}
    tick = {value: float(texts[str(value)].get("x")) for value in (0, 100, 400)}
    assert [x1[i] for i in upright] == pytest.approx([tick[100], tick[400]], abs=0.01)
    # 20 tokens either way, on an axis that begins at 0.
    wide = x2[level[0]] - x1[level[0]]
    assert wide == pytest.approx(40 * (tick[400] - tick[0]) / 400, abs=0.02)
    grid = {value: float(texts[str(value)].get("y")) - 4 for value in (40, 60)}
    assert y1[level[0]] == pytest.approx(grid[40], abs=0.01)
    assert titles(figure) == [
        "a: 40.0 [35.0, 45.0] at 100.0 [80.0, 120.0] tokens",
        "b & c: 60.0 [50.0, 70.0] at 400.0 tokens",
    ]
    assert {"1: a", "2: b & c", "1", "2"} <= texts.keys()
    assert figure.header == ["", "tokens", "s %"]
    assert figure.rows[1] == ["b & c", "400.0", "60.0 [50.0, 70.0]"]


def test_a_study_report_draws_scores_against_costs(tmp_path):
    def variant(name, score, cost, **more):
        metrics = {"VQA accuracy %": Estimate(score, score - 5, score + 5)}
        return Variant(name, metrics=metrics, cost=cost, **more)

    variants = [
        variant("cheap", 30, ("USD per question", Estimate(0.0001, 0.00008, 0.00012))),
        variant("dear", 40, ("USD per question", Estimate(0.001, 0.0009, 0.0011)), reference=True),
        variant("free", 20, None),
        Variant("failed", error="no server"),
    ]
    page = write_study_report(tmp_path, "S", variants).read_text(encoding="utf-8")
    [figure] = re.findall(r"<h3>VQA accuracy % against USD per question.*?</figure>", page, re.S)
    assert "0.000100 [0.000080, 0.000120]" in figure
    assert "dear (reference)" in figure
    assert "Not drawn, since their cost is not known: free." in figure
    page = write_study_report(tmp_path, "S", variants[1:]).read_text(encoding="utf-8")
    assert "against USD" not in page  # a single mark shows nothing


def test_shares_add_up():
    series = [Series("a", 0, [Estimate(1)]), Series("b", 1, [Estimate(3)])]
    figure = shares("T", "C.", ["x"], series, x_name="part", axis=Axis("seconds"))
    bars = list(ElementTree.fromstring(str(figure.svg)).iter("rect"))
    first, second = (
        (float(bar.get("x")), float(bar.get("x")) + float(bar.get("width"))) for bar in bars
    )
    assert first[1] == pytest.approx(second[0], abs=0.02)
    assert second[1] - second[0] == pytest.approx(3 * (first[1] - first[0]), abs=0.05)


@pytest.mark.parametrize(
    ("draw", "options"), [(dots, {}), (dots, {"counts": [12345, 6]}), (shares, {})]
)
def test_a_long_label_is_whole_in_lines_and_no_grid_runs_through_it(draw, options):
    label = "passages=5, tags and caption, decision=marginal, reranking=yes-no, reader=smollm2"
    series = [Series("a", 0, [Estimate(40), Estimate(2)])]
    figure = draw("T", "C.", [label, "y"], series, x_name="v", axis=Axis("points"), **options)
    root = ElementTree.fromstring(str(figure.svg))
    lines = [text for text in root.iter("text") if text.get("class") == "label"]
    *first, last = sorted((float(t.get("y")), t.text) for t in lines)
    assert len(first) == (3 if options else 2)
    assert " ".join(text for _, text in first) == label
    assert last[1] == "y"
    letters = max(len(text) for _, text in first)
    assert letters * 7.2 < WIDTH  # of a wide font
    grid = [e for e in root.iter("line") if e.get("class") in {"grid", "zero"}]
    assert grid
    for y in (y for y, _ in [*first, last]):
        assert not [e for e in grid if float(e.get("y1")) < y and float(e.get("y2")) > y - 10]


def test_steps_of_an_axis_keep_their_digits():
    series = [Series("a", 0, [Estimate(0.0131)])]
    figure = shares("T", "C.", ["x"], series, x_name="v", axis=Axis("seconds", decimals=3))
    root = ElementTree.fromstring(str(figure.svg))
    assert [t.text for t in root.iter("text") if t.text[0].isdigit()] == [
        "0",
        "0.005",
        "0.01",
        "0.015",
    ]


def test_a_legend_shows_marks_of_marks_and_bars_of_bars():
    series = [Series("a", 0, [Estimate(1)]), Series("b", 2, [Estimate(3)])]
    for draw, bars in ((columns, True), (shares, True), (dots, False)):
        figure = draw("T", "C.", ["x"], series, x_name="part", axis=Axis("seconds"))
        assert figure.bars is bars
        key = ElementTree.fromstring(str(mark_svg(2, figure.bars)))
        assert [(e.tag, e.get("class")) for e in key] == [
            ("rect", "bar s2") if bars else ("path", "mark s2")
        ]
        drawn = ElementTree.fromstring(str(figure.svg)).iter("rect" if bars else "path")
        assert [e.get("class") for e in drawn][-1] == key[0].get("class")


def test_a_study_of_two_datasets_draws_each_alone(tmp_path):
    def variants(dataset):
        metrics = {"VQA accuracy %": Estimate(20, 10, 30)}
        return [Variant("one", dataset, reference=True, metrics=metrics), Variant("two", dataset)]

    page = write_study_report(tmp_path, "s", [*variants("A, split x"), *variants("B")]).read_text()
    headings = re.findall(r"<h3( class=\"group\")?>([^<]*)</h3>", page)
    assert [text for _, text in headings] == ["A, split x", "VQA accuracy %", "B", "VQA accuracy %"]
    groups = re.findall(r'<tr class="group".*?<th[^>]*>([^<]*)</th>', page)
    assert groups == ["A, split x", "B"]
    assert re.findall(r'class="label"[^>]*>([^<]+)', page) == ["one (reference)"] * 2
    page = write_study_report(tmp_path, "s", variants("A, split x")).read_text()
    assert "A, split x" not in page  # of one dataset the study's facts speak


def test_every_style_has_a_mark_of_its_own():
    marks = {re.search(r' d="([^"]+)"', str(mark_svg(style)))[1] for style in range(STYLES)}
    assert len(marks) == STYLES


@pytest.mark.parametrize("draw", [columns, dots])
def test_names_in_figures_are_text(draw):
    figure = draw(
        HOSTILE,
        HOSTILE,
        [HOSTILE],
        [Series(HOSTILE, 0, [Estimate(1)])],
        x_name=HOSTILE,
        axis=PERCENT,
    )
    assert "<script" not in str(figure.svg)
    assert "<b>" not in str(figure.svg)
    ElementTree.fromstring(str(figure.svg))


@given(st.text())
def test_embedded_json_reads_back_and_cannot_end_its_element(text):
    written = str(safe_json({"a": [text, HOSTILE]}))
    assert json.loads(written) == {"a": [text, HOSTILE]}
    assert not set("<>&\u2028\u2029") & set(written)


def test_a_study_report_shows_variants_links_and_failures(tmp_path):
    run = tmp_path / "runs" / "a b#1"
    run.mkdir(parents=True)
    (run / "report.html").write_text("x", encoding="utf-8")
    variants = [
        Variant("first", run=run, reference=True, metrics={"VQA accuracy %": Estimate(20, 10, 30)}),
        Variant(
            "second",
            run=tmp_path / "runs" / "gone",
            metrics={"VQA accuracy %": Estimate(22.34, 12, 32)},
            differences={"VQA accuracy %": Difference(Estimate(2.34, -1, 5), 0.02, 0.04, 3, 1)},
        ),
        Variant(
            "third",
            metrics={"VQA accuracy %": Estimate(20, 10, 30)},
            differences={"VQA accuracy %": Difference(Estimate(0, 0, 0), 1.0, 1.0, 0, 0)},
        ),
        Variant(
            "fourth",
            metrics={"VQA accuracy %": Estimate(20, 10, 30)},
            differences={"VQA accuracy %": Difference(Estimate(0, 0, 0), 1.0, None, 2, 2)},
        ),
        Variant(HOSTILE, error=HOSTILE),
    ]
    path = write_study_report(
        tmp_path, "A <study>", variants, facts={"dataset": "d"}, notes=["stand-in"]
    )
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html"
    assert 'href="runs/a%20b%231/report.html"' in page
    assert "gone" not in page
    assert "+2.3 [-1.0, 5.0] Holm p 0.0400" in page
    assert "+0.0 [0.0, 0.0] p 1.0000" in page  # as many wins as losses
    assert page.count("<small>same for every question</small>") == 1
    assert "Not drawn, since same for every question: third." in page
    [figure] = re.findall(r"<h3>[^<]*difference.*?</figure>", page, re.S)
    assert re.findall(r'class="label"[^>]*>([^<]+)', figure) == ["second", "fourth"]
    assert "A &lt;study&gt;" in page
    assert "<script" not in page


def test_a_page_allows_its_own_style_only(tmp_path):
    page = render(
        "study.html.jinja",
        title="t",
        facts={},
        notes=[],
        header=[""],
        groups={},
        figures={},
        tables={},
    )
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "default-src &#39;none&#39;" in policy
    assert "script-src &#39;none&#39;" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
