"""Rows and headings are named by what ran."""

import re

import pytest
from report_files import write_dataset, write_run

from ravqa.core.errors import UserError
from ravqa.core.settings import dump_yaml
from ravqa.runs.console import condition_name, short_name
from ravqa.runs.finished import FinishedRun
from ravqa.runs.folder import RunDir
from ravqa.runs.options import RunRequest
from ravqa.runs.plan import known_config, pipeline_name, plan_pipeline


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


def test_a_changed_pipeline_is_its_name_and_what_was_changed():
    changed = ["retriever=none", "top_k=5"]
    assert pipeline_name("sample", changed) == "sample, changed: retriever=none; top_k=5"
    assert pipeline_name("sample", [], retrieval_only=True) == "sample, retrieval only"
    expected = "sample, retrieval only, changed: top_k=5"
    assert pipeline_name("sample", ["top_k=5"], retrieval_only=True) == expected


def test_a_pipeline_is_not_described_by_parts_that_do_not_run():
    def described(**options):
        return plan_pipeline(RunRequest("okvqa", **options)).config.description

    assert "SmolLM2" in described()
    changed = "sample, retrieval only, changed: retriever=random"
    assert described(retriever="random", retrieval_only=True) == changed


def test_a_run_without_retrieval_is_not_said_to_have_any(tmp_path, capsys):
    data = write_dataset(tmp_path / "data", images=False)
    options = ["--retriever", "none", "--controls", "random"]
    folder = write_run(tmp_path / "run", data, *options)
    shown = capsys.readouterr()
    assert re.search(r"^none +\d", shown.out, re.M)
    assert "with retrieval" not in shown.out
    assert "retrieval gains" not in shown.out
    assert re.search(r"none minus", shown.out)
    assert re.search(r"pipeline: \S+, changed: retriever=none; top_k=8", shown.err)
    page = re.sub(r"<script.*?</script>", "", (folder / "report.html").read_text(), flags=re.S)
    assert "without retrieval" in page
    assert not re.search(r"\bwith retrieval", page)
    assert ", changed: retriever=none" in page
    run = FinishedRun(folder)
    assert (run.what_ran, run.retrieves) == ("without retrieval", False)
    assert FinishedRun(folder, "random").retrieves


def test_the_settings_of_a_run_say_what_was_changed_and_by_no_other_words_resumed(tmp_path):
    def known(*changes, **options):
        asked = RunRequest("okvqa", pipeline="bm25-retrieval", overrides=changes, **options)
        return known_config(asked, plan_pipeline(asked).settings)

    first = known("top_k=5", "answering.prompt=short-answer", retriever="random")
    described = first["pipeline"]["description"]
    assert described.startswith("bm25-retrieval, changed: ")
    changed = "retriever=random; top_k=5; answering.prompt=short-answer"
    assert described.endswith(f", changed: {changed}")
    assert known("description=mine", "top_k=5")["pipeline"]["description"] == "mine"
    assert known()["pipeline"]["description"].startswith("BM25")
    (tmp_path / "config.yaml").write_text(dump_yaml(first))
    run = RunDir(tmp_path, resume=True)
    # The same settings, written in another order.
    run.check_resumed(known("answering.prompt=short-answer", "top_k=5", retriever="random"))
    with pytest.raises(UserError, match=r"\(pipeline.top_k: 5 then, 6 now\)"):
        run.check_resumed(known("answering.prompt=short-answer", "top_k=6", retriever="random"))
