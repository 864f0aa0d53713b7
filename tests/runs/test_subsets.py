"""All subsets of M2KR as one table: what is asked for, refused and written, without any run."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hand_runs import answered, write
from rich.console import Console as RichConsole

from ravqa.core.errors import UserError
from ravqa.datasets.m2kr import SUBSETS
from ravqa.datasets.published import published_scores
from ravqa.runs import subsets as module
from ravqa.runs.console import Console
from ravqa.runs.options import RunRequest

HUB = "BByrneLab/multi_task_multi_modal_knowledge_retrieval_benchmark_M2KR"


def request(**options):
    defaults = {
        "dataset": "m2kr",
        "data": Path("data"),
        "pipeline": "bm25-retrieval",
        "dataset_options": ["subset=all"],
        "retrieval_only": True,
    }
    return RunRequest(**{**defaults, **options})


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        ({}, True),
        ({"dataset_options": ["subset=ALL", "images=x"]}, True),
        ({"dataset": "m2kr_cn"}, True),
        ({"dataset_options": ["subset=OKVQA"]}, False),
        ({"dataset_options": []}, False),
        ({"dataset": "okvqa"}, False),
    ],
)
def test_a_request_for_all(options, asks):
    assert module.asks_for_all(request(**options)) is asks


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retrieval_only": False}, "--subset all scores retrieval only: add --retrieval-only"),
        (
            {"data": None},
            f"--dataset m2kr needs --data: a folder with the files of {HUB}, or hf:{HUB} to read "
            "it from the hub",
        ),
        ({"corpus": ["x"]}, "--corpus with subset=all: every subset has its own passages"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(options, said):
    with pytest.raises(UserError) as error:
        module.check_subsets(request(**options))
    assert str(error.value) == said


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Runs nothing: each subset's folder has one question and what it reports."""
    asked = []

    def run(wanted, console):
        asked.append(wanted)
        name = wanted.output.name
        conditions = {"main": 25.0 + len(asked), "none": 1.0}
        intervals = {"main": [20.0, 30.5], "none": [0.0, 2.0]}
        reported = [
            {"metric": m.name, "k": m.k, "questions": 40, "conditions": conditions,
             "intervals_95": intervals}
            for m in SUBSETS[name].retrieval_metrics
        ]  # fmt: skip
        reported.append({**reported[0], "k": 3, "conditions": {"none": 1.0}})
        if not (wanted.output / "config.yaml").is_file():
            write(wanted.output, [answered(1)], retrieval={"reported": reported})

    monkeypatch.setattr(module, "run", run)
    there = {"test": ["WIT", "OKVQA", "CC"], "valid": ["OKVQA", "Infoseek"]}

    def names(data, config):
        assert data == tmp_path / "data"
        subset = config.removesuffix("_data")
        assert config == f"{subset}_data"
        if subset == "KVQA":
            raise UserError("the hub cannot be reached")
        return [split for split, found in there.items() if subset in found]

    monkeypatch.setattr(module.hub, "split_names", names)

    def evaluate(**options):
        out, err = io.StringIO(), io.StringIO()
        console = Console(
            out=RichConsole(file=out, width=300), err=RichConsole(file=err, width=300)
        )
        asked.clear()
        wanted = request(data=tmp_path / "data", output=tmp_path / "runs", **options)
        root = module.run_subsets(wanted, console)
        assert root == tmp_path / "runs"
        return SimpleNamespace(
            asked=list(asked),
            printed=out.getvalue(),
            told=err.getvalue(),
            table=json.loads((root / "table.json").read_text(encoding="utf-8")),
        )

    return evaluate


def test_every_subset_that_is_there_is_run_by_itself(evaluated, tmp_path):
    options = ["subset=all", "images=photos", "subsetting=x"]
    found = evaluated(dataset_options=options, resume=False, limit=7, retriever="random")
    assert [wanted.output for wanted in found.asked] == [
        tmp_path / "runs" / name for name in ("WIT", "OKVQA")
    ]
    assert [wanted.dataset_options for wanted in found.asked] == [
        ["images=photos", "subsetting=x", f"subset={name}"] for name in ("WIT", "OKVQA")
    ]
    assert {(w.resume, w.limit, w.dataset) for w in found.asked} == {(False, 7, "m2kr")}
    lines = found.told.splitlines()
    assert "missing subsets: IGLUE, KVQA, MSMARCO, OVEN, LLaVA, EVQA, Infoseek" in lines[0]
    assert "subset WIT, 1 of 2" in lines[1]
    assert "subset OKVQA, 2 of 2" in lines[2]
    assert "m2kr, split test" in found.printed
    assert f"table: {tmp_path / 'runs' / 'table.csv'}" in found.printed


def test_the_table_has_what_was_measured_and_published(evaluated, tmp_path):
    found = evaluated(limit=7, retriever="random", overrides=["top_k=9"])
    head = {key: value for key, value in found.table.items() if key != "scores"}
    assert head == {
        "schema_version": 1,
        "dataset": "m2kr",
        "split": "test",
        "pipeline": "bm25-retrieval",
        "overrides": ["retriever=random", "top_k=9"],
        "limit": 7,
    }
    columns = [
        (name, m.name, m.k, percent)
        for name, percent in (("WIT", 26.0), ("OKVQA", 27.0))
        for m in SUBSETS[name].retrieval_metrics
    ]
    measured = [
        {
            "model": "bm25-retrieval, retriever=random, top_k=9",
            "status": "measured",
            "subset": name,
            "metric": metric,
            "k": k,
            "percent": percent,
            "low_95": 20.0,
            "high_95": 30.5,
            "questions": 40,
            "of": SUBSETS[name].test,
            "source": str(tmp_path / "runs" / name),
        }
        for name, metric, k, percent in columns
    ]
    published = [
        {
            "model": score.model,
            "status": "published",
            "subset": score.subset,
            "metric": score.metric.name,
            "k": score.metric.k,
            "percent": score.percent,
            "low_95": None,
            "high_95": None,
            "questions": None,
            "of": None,
            "source": score.source,
        }
        for score in published_scores("m2kr")
    ]
    assert published
    assert found.table["scores"] == measured + published
    text = (tmp_path / "runs" / "table.csv").read_text(encoding="utf-8")
    assert "\r" not in text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == list(measured[0])
    assert rows[0] == {key: str(value) for key, value in measured[0].items()}
    blank = ("low_95", "high_95", "questions", "of")
    assert [rows[-1][key] for key in blank] == [""] * 4
    assert len(rows) == len(measured + published)


def test_without_a_retrievers_name_the_model_is_the_pipeline(evaluated, tmp_path):
    found = evaluated(pipeline="bm25-retrieval", split="valid")
    assert [wanted.output.name for wanted in found.asked] == ["OKVQA"]  # Infoseek has no valid
    assert {s["model"] for s in found.table["scores"]} == {"bm25-retrieval"}
    assert {s["status"] for s in found.table["scores"]} == {"measured"}
    assert "m2kr, split valid" in found.printed
    chinese = evaluated(dataset="m2kr_cn", overwrite=True)
    measured = [s for s in chinese.table["scores"] if s["status"] == "measured"]
    assert {s["of"] for s in measured} == {None}


def test_runs_of_subsets_are_resumed_or_replaced_if_told(evaluated, tmp_path):
    def said(**options):
        with pytest.raises(UserError) as error:
            evaluated(**options)
        return str(error.value)

    root = tmp_path / "runs"
    assert [w.resume for w in evaluated(resume=True).asked] == [True, True]
    assert said() == (
        f"the output folder {root} has runs of subsets: --resume continues them, --overwrite "
        "replaces them"
    )
    assert [w.resume for w in evaluated(overwrite=True).asked] == [False, False]
    (root / "OKVQA" / "config.yaml").unlink()
    for path in (root / "OKVQA").iterdir():
        path.unlink()
    (root / "OKVQA").rmdir()
    assert [w.resume for w in evaluated(resume=True).asked] == [True, True]


def test_what_is_missing_or_goes_wrong_is_named(evaluated, tmp_path, monkeypatch):
    def said(**options):
        with pytest.raises(UserError) as error:
            evaluated(**options)
        return str(error.value)

    def fail(wanted, console):
        raise UserError("no files")

    monkeypatch.setattr(module, "run", fail)
    assert said() == "subset WIT: no files"
    # The last reason counts, unless the subset is simply not there.
    assert said(split="train") == "the hub cannot be reached"
    monkeypatch.setattr(module.hub, "split_names", lambda data, config: [])
    data = tmp_path / "data"
    assert said(split="train") == f"{data} has no subset of m2kr with a split train"
