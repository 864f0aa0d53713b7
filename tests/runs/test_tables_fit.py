"""The tables of a run, with the widest numbers and names that occur, at 80 columns and others."""

import itertools

import pytest
from narrow import console, fits

from ravqa.datasets import m2kr
from ravqa.datasets.published import published_scores
from ravqa.runs.console import Console

CONDITIONS = ("main", "none", "oracle", "random", "wrong-image")
TYPES = ("Vehicles and Transportation", "People and Everyday life", "Geography, History, Language")
WIDTHS = [80, 140]


def condition(mean):
    found = {
        "score": 82.4,
        "interval_95": [74.6, 100.0],
        "raw": None,
        "groups": {t: {"mean": 100.0, "questions": 5046, "interval_95": [1, 2]} for t in TYPES},
        "unanswered": [],
        "unjudged": [],
    }
    return found | ({"mean": 79.9} if mean else {})


def results(**changes):
    """What tables read of the results of a run with all controls, made by hand."""
    mean, bounds = changes.get("mean", False), changes.get("bounds", [-12.5, -10.1])
    test = {"difference": -28.3, "interval_95": bounds, "p_value": 0.0001}
    recall = {str(k): 100.0 for k in (1, 5, 10, 20, 50, 100, 500)}
    stages = [
        {"stage": name, "passages": 500.0, "PRRecall": {**recall, "all": 100.0}, "gain": {}}
        for name in ("retrieved", "cross-encoder of a long name", "read")
    ]
    retrieved = [name for name in CONDITIONS if name != "none"]
    return {
        "dataset": {"label": "bundled sample (not InfoSeek)", "split": "val", "images": 4000},
        "answers": {
            "label": "InfoSeek score",
            "questions": 5046,
            "rule": {"judge": "BEM"},
            "conditions": {name: condition(mean) for name in CONDITIONS},
            "comparisons": {f"main - {name}": dict(test) for name in CONDITIONS[1:]},
        },
        "retrieval": {
            "metric": "PRRecall",
            "questions": 5046,
            "conditions": {name: {"PRRecall": recall} for name in retrieved},
            "stages": dict.fromkeys(retrieved, stages),
            "by_ids": None,
            "by_articles": None,
        },
        "provenance": {"retriever": changes.get("retriever", "bm25")},
    }


def shown(found, width=80):
    screen = console(width)
    screen.tables(found)
    return fits(screen.out.file.getvalue(), width)


def test_only_the_reason_that_applies_is_given_and_not_before_the_controls():
    found = results(bounds=[None, None])
    text = " ".join(shown(found))
    assert "the same for every image" not in text
    assert "6 images differ" in text
    found["dataset"]["images"] = 9
    text = " ".join(shown(found))
    assert "No intervals: fewer than 10 images." in text
    assert "6 images differ" not in text
    screen = console()
    screen.answered(found)
    assert "No intervals" not in screen.out.file.getvalue()


@pytest.mark.parametrize(("columns", "width"), [(None, 130), ("80", 80)])
def test_tables_in_a_pipe_have_the_width_that_columns_gives(columns, width, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert Console().out.width == width


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("mean", [False, True])
def test_every_table_of_a_run_fits(mean, width):
    lines = shown(results(mean=mean), width)
    [main] = [line for line in lines if line.startswith("retrieval  ") and "[74.6" in line]
    assert main.split() == ["retrieval", "82.4", *(["79.9"] if mean else []), "[74.6,", "100.0]"]
    [none] = [line for line in lines if line.startswith("none") and "[74.6" in line]
    assert none.split()[-4:] == ["-28.3", "[-12.5,", "-10.1]", "0.0001"]
    for name in TYPES:
        assert any(line.split() == [*name.split(), "5,046", *["100.0"] * 5] for line in lines)
    assert "interval" not in " ".join(lines).replace("95 % interval", "")


def test_the_columns_say_what_is_compared():
    lines = shown(results())
    header = next(i for i, line in enumerate(lines) if "minus this" in line)
    assert lines[header - 1].split() == ["retrieval"]
    lines = shown(results(retriever="oracle"))
    assert [line.split()[0] for line in lines if "[74.6" in line] == [
        *("oracle", "none", "oracle", "random", "wrong")
    ]


def test_an_interval_that_is_left_out_is_explained_once():
    found = results(bounds=[None, None])
    found["answers"]["conditions"]["none"]["interval_95"] = [None, None]
    lines = shown(found)
    text = " ".join(" ".join(lines).split())
    assert text.count("A score without an interval is the same for every image.") == 1
    assert text.count("A difference has no interval if fewer than 6 images differ") == 1
    [none] = [line for line in lines if line.startswith("none") and "-28.3" in line]
    assert none.split() == ["none", "82.4", "-", "-28.3", "-", "0.0001"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["m2kr", "m2kr_cn"])
def test_every_subset_of_m2kr_has_a_row_that_fits(name, width):
    columns = [(s, m.name, m.k) for s, p in m2kr.SUBSETS.items() for m in p.retrieval_metrics]
    own = {"questions": 40, "of": 5120, "percent": 100.0, "status": "measured"}
    scores = [
        {**own, "model": "bm25-retrieval, static:FILE", "subset": s, "metric": metric, "k": k}
        for s, metric, k in columns
    ]
    published = published_scores(name)
    scores += [
        {
            "model": s.model,
            "status": "published",
            "subset": s.subset,
            "metric": s.metric.name,
            "k": s.metric.k,
            "percent": s.percent,
            "questions": None,
            "of": None,
        }
        for s in published
    ]
    screen = console(width)
    screen.benchmark(f"{name}, split test", columns, scores)
    lines = fits(screen.out.file.getvalue(), width)
    start = next(i for i, line in enumerate(lines) if line.startswith("───")) + 1
    rows = [line.split() for line in itertools.islice(lines, start, start + len(columns))]
    assert [row[0] for row in rows] == [subset for subset, _, _ in columns]
    assert {row[2] for row in rows} == {"100.0*"}
    models = list(dict.fromkeys(s.model for s in published))
    for (subset, metric, k), row in zip(columns, rows, strict=True):
        assert row[1] == f"{'PR' if metric == 'pseudo_recall_at_k' else 'R'}@{k}"
        for model, cell in zip(models, row[3:], strict=True):
            known = [
                s.percent
                for s in published
                if (s.model, s.subset, s.metric.name, s.metric.k) == (model, subset, metric, k)
            ]
            assert cell == (f"{known[0]:.1f}" if known else "-")
