"""Rows and headings are named by what ran."""

import re

import pytest
from report_files import write_dataset, write_run

from ravqa.runs.console import condition_name, pipeline_name
from ravqa.runs.finished import FinishedRun


@pytest.mark.parametrize(
    ("condition", "retriever", "name"),
    [
        ("main", "bm25", "with retrieval"),
        ("main", "late-interaction", "with retrieval"),
        ("main", "none", "without retrieval"),
        ("main", "oracle", "oracle passages"),
        ("main", "random", "random passages"),
        ("none", "bm25", "without retrieval"),
        ("none", "none", "without retrieval (control)"),
        ("oracle", "oracle", "oracle passages (control)"),
        ("wrong-image", "bm25", "image of another question"),
    ],
)
def test_a_row_is_named_by_the_retriever(condition, retriever, name):
    assert condition_name(condition, retriever) == name


def test_a_changed_pipeline_is_its_base_and_what_was_changed():
    assert pipeline_name("BM25, no reader.", []) == "BM25, no reader."
    changed = ["retriever=none", "top_k=5"]
    expected = "base: BM25, no reader, changed: retriever=none; top_k=5"
    assert pipeline_name("BM25, no reader.", changed) == expected
    assert pipeline_name("", ["top_k=5"]) == "changed: top_k=5"


def test_a_run_without_retrieval_is_not_said_to_have_any(tmp_path, capsys):
    data = write_dataset(tmp_path / "data", images=False)
    options = ["--retriever", "none", "--controls", "random"]
    folder = write_run(tmp_path / "run", data, *options)
    shown = capsys.readouterr()
    assert re.search(r"^none +\d", shown.out, re.M)
    assert "with retrieval" not in shown.out
    assert "retrieval gains" not in shown.out
    assert re.search(r"none minus", shown.out)
    assert re.search(r"pipeline: base: .*, changed: retriever=none; top_k=8", shown.err)
    page = re.sub(r"<script.*?</script>", "", (folder / "report.html").read_text(), flags=re.S)
    assert "without retrieval" in page
    assert not re.search(r"\bwith retrieval", page)
    assert "base: " in page
    run = FinishedRun(folder)
    assert (run.what_ran, run.retrieves) == ("without retrieval", False)
    assert FinishedRun(folder, "random").retrieves
