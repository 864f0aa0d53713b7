"""How a run's passages are read: --corpus-option."""

import pytest
import yaml
from helpers.study_files import write_data

from ravqa.collections import Collection
from ravqa.core.errors import UserError
from ravqa.reports.run import read_run
from ravqa.runs.console import Console
from ravqa.runs.options import RunRequest
from ravqa.runs.passages import read_corpus
from ravqa.runs.run import run
from ravqa.studies.options import StudyRequest
from ravqa.studies.plan import load_plan


@pytest.fixture
def pages(tmp_path):
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "notes.txt").write_text("one two three. four five six.", encoding="utf-8")
    return folder


def asked(tmp_path, pages, **changes):
    request = {
        "dataset": "jsonl",
        "data": write_data(tmp_path / "data"),
        "corpus": (pages,),
        "corpus_options": ("words=3",),
        "pipeline": "bm25-retrieval",
        "overrides": ("retriever.query.question=1",),
        "retrieval_only": True,
        "limit": 2,
        "output": tmp_path / "out",
    }
    return RunRequest(**request | changes)


def message(call, *given, **changes):
    with pytest.raises(UserError) as error:
        call(*given, **changes)
    return str(error.value)


def test_passages_are_read_as_asked_also_for_the_report(tmp_path, pages, fresh_cache):
    folder = run(asked(tmp_path, pages), Console())
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["corpus"]["options"] == ["words=3"]
    assert config["corpus"]["passages"] == 2
    texts = [passage.text for passage in read_run(folder).corpus.values()]
    assert texts == ["one two three.", "four five six."]
    resumed = asked(tmp_path, pages, corpus_options=("words=4",), resume=True)
    assert "corpus.options" in message(run, resumed, Console())


def test_options_that_cannot_be_used(tmp_path, pages, fresh_cache):
    alone = asked(tmp_path, pages, corpus=())
    expected = "--corpus-option says how --corpus is read, which is not given"
    assert message(run, alone, Console()) == expected
    unknown = message(read_corpus, [pages], ["ocr_=true"])
    assert unknown.startswith("--corpus-option: unknown key 'ocr_': ")
    assert message(read_corpus, [pages], ["dpi=90"]) == (
        "dpi is the resolution of images of pages: choose pages images or both, or ocr"
    )


def test_the_passages_of_a_collection_are_as_they_were_built(tmp_path, monkeypatch):
    class Built:
        corpus = "its passages"

    monkeypatch.setattr(Collection, "exists", lambda path: True)
    monkeypatch.setattr(Collection, "open", lambda path: Built)
    assert read_corpus([tmp_path]) == "its passages"
    assert message(read_corpus, [tmp_path], ["words=3"]) == (
        f"{tmp_path} is a collection, whose passages were read when it was built: leave out "
        "--corpus-option"
    )


def test_a_study_has_them_by_dataset(tmp_path):
    study = tmp_path / "study.yaml"
    dataset = {"name": "okvqa", "corpus": ["p"], "corpus_options": {"ocr": True}}
    axes = {"axes": {"top_k": [1, 2]}, "pipeline": "bm25-retrieval", "datasets": [dataset]}
    study.write_text(yaml.safe_dump({**axes, "retrieval_only": True}), encoding="utf-8")
    planned = load_plan(StudyRequest(str(study)))
    assert [run.request.corpus_options for run in planned.runs] == [["ocr=true"]] * 2
