"""Rows and headings are named by what ran."""

import re

import pytest
import yaml
from report_files import write_dataset, write_run

from ravqa.runs.console import condition_name, short_name
from ravqa.runs.finished import FinishedRun
from ravqa.runs.plan import pipeline_name


@pytest.mark.parametrize(
    ("condition", "retriever", "name", "short"),
    [
        ("main", "bm25", "with retrieval", "retrieval"),
        ("main", "late-interaction", "with retrieval", "retrieval"),
        ("main", "none", "without retrieval", "none"),
        ("main", "oracle", "oracle passages", "oracle"),
        ("main", "random", "random passages", "random"),
        ("none", "bm25", "without retrieval", "none"),
        ("none", "none", "without retrieval (control)", "none (control)"),
        ("oracle", "oracle", "oracle passages (control)", "oracle (control)"),
        ("wrong-image", "bm25", "image of another question", "wrong image"),
    ],
)
def test_a_row_is_named_by_the_retriever(condition, retriever, name, short):
    assert condition_name(condition, retriever) == name
    assert short_name(condition, retriever) == short


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


def test_the_settings_of_a_run_say_what_was_changed_and_by_no_other_words_resumed(tmp_path, capsys):
    data = write_dataset(tmp_path / "data", 2, images=False)
    changes = ["--set", "top_k=5", "--set", "answering.prompt=short-answer"]
    folder = write_run(tmp_path / "run", data, *changes)
    described = yaml.safe_load((folder / "config.yaml").read_text())["pipeline"]["description"]
    assert described.startswith("base: BM25")
    changed = "retriever=random; top_k=8; top_k=5; answering.prompt=short-answer"
    assert described.endswith(f", changed: {changed}")
    assert f"pipeline: {described}" in capsys.readouterr().err
    # The same settings, written in another order.
    write_run(tmp_path / "run", data, *changes[2:], *changes[:2], "--resume")
    words = ["--set", "description=mine"]
    folder = write_run(tmp_path / "named", data, *words)
    assert yaml.safe_load((folder / "config.yaml").read_text())["pipeline"]["description"] == "mine"
