"""Tables of runs as Markdown and LaTeX: what stands in each cell, whatever the names are."""

from ravqa.metrics.statistics.intervals import Estimate
from ravqa.reports.study import Difference
from ravqa.studies.formats import as_latex, as_markdown
from ravqa.studies.tables import Cell, Row, Table

TABLE = Table(
    title="a_b, 5 %",
    titles={"score": "VQA %", "seconds": "seconds"},
    questions=10,
    images=3,
    rows=[
        Row("[x] | <b>", True, cells={"score": Cell(Estimate(50.0, 40.0, 60.0), 10)}),
        Row(
            "y",
            cells={
                "score": Cell(
                    Estimate(5.0, 4.0, 6.0), 10, Difference(Estimate(-1.0, -2.0, 0.5), 0.01, 0.02)
                ),
                "seconds": Cell(Estimate(0.1234, 0.1, 0.2), 10, cached=0.5),
            },
        ),
        Row("z", error="out of\nmemory"),
    ],
    notes=["a note"],
)


def cells(line, mark):
    return [cell.strip() for cell in line.strip(" |").split(mark)]


def test_markdown():
    title, _, *lines, _, note = as_markdown([TABLE]).rstrip("\n").split("\n")
    assert title == r"### a\_b, 5 %: 10 questions, 3 images"
    assert note == "a note"
    header, rule, first, second, third = lines
    assert cells(header, "|") == ["VQA %", "difference", "p", "seconds"]
    assert [(c[0], c[-1]) for c in cells(rule, "|")] == [(":", "-"), *[("-", ":")] * 4]
    assert first.startswith(r"| \[x\] \| \<b\> (reference) ")
    assert cells(first, " | ")[1:] == ["50.0 [40.0, 60.0]", "", "", "-"]
    change = ["-1.0 [-2.0, 0.5]", "0.0200"]
    assert cells(second, "|") == ["y", "5.0 [4.0, 6.0]", *change, "0.123 [0.100, 0.200] *"]
    assert cells(third, "|") == ["z: failed, out of memory", "-", "", "", "-"]


def test_latex():
    lines = as_latex([TABLE]).split("\n")
    begin, middle = lines.index(r"\begin{tabular}{lrrrr}"), lines.index(r"\midrule")
    header, first, second, third = (lines[i] for i in (begin + 2, *range(middle + 1, middle + 4)))
    assert header.split(" & ")[1].strip() == r"VQA \%"
    assert first.startswith(r"{}[x] \textbar{} \textless{}b\textgreater{} (reference)")
    assert [cell.strip() for cell in second.removesuffix(r" \\").split(" & ")] == [
        "y",
        "5.0 [4.0, 6.0]",
        "-1.0 [-2.0, 0.5]",
        "0.0200",
        "0.123 [0.100, 0.200] *",
    ]
    assert third.startswith("z: failed, out of memory ")
    assert lines[middle + 4] == r"\bottomrule"
    assert r"\par a note" in lines
