"""What `import ravqa` gives: its names, lazily, and that they work together."""

import json
import subprocess
import sys

import pytest
from study_files import call, read_table, write_data

import ravqa
from ravqa.core.errors import UserError
from ravqa.datasets.base import Dataset
from ravqa.readers import READERS
from ravqa.readers.controls import FirstWords

NAMES = [
    "Collection",
    "Corpus",
    "Passage",
    "Pipeline",
    "Question",
    "compare",
    "evaluate",
    "load_dataset",
    "register",
]


def test_the_names_are_pinned():
    assert ravqa.__all__ == NAMES
    assert set(NAMES) <= set(dir(ravqa))
    for name in NAMES:
        assert getattr(ravqa, name).__name__ == name
    from ravqa.collections import Collection
    from ravqa.pipeline import Pipeline

    assert ravqa.Collection is Collection
    assert ravqa.Pipeline is Pipeline
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'"):
        _ = ravqa.Pipelin


def test_importing_imports_nothing_heavy():
    code = (
        "import sys, ravqa\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'rich', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)), [m for m in sys.modules if 'ravqa.' in m])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("face"))


def test_evaluate_and_compare_give_what_the_commands_give(data, tmp_path, capsys):
    capsys.readouterr()
    made = ravqa.evaluate(
        "jsonl",
        "bm25-retrieval",
        "reader.words=1",
        data=str(data),
        output=str(tmp_path / "a"),
        controls=["none"],
    )
    assert "".join(capsys.readouterr()) == ""
    asked = ["run", "--dataset", "jsonl", "--data", data, "--pipeline", "bm25-retrieval"]
    asked += ["--set", "reader.words=1", "--output", tmp_path / "b"]
    assert call(capsys, *asked)[0] == 0
    folders = tmp_path / "a", tmp_path / "b"
    assert made.folder == folders[0]
    expected = json.loads((folders[1] / "results.json").read_text())
    for section in ("answers", "retrieval"):
        main, other = (r[section]["conditions"]["main"] for r in (made.results, expected))
        assert main == other
    found = ravqa.compare(*folders, metrics=["score"])
    assert call(capsys, "compare", *folders, "--metrics", "score", "--output", tmp_path)[0] == 0
    written = read_table(tmp_path)
    assert [row.name for row in found.table.rows] == ["a", "b"]
    for row, expected in zip(found.table.rows, written["tables"][0]["rows"], strict=True):
        value = expected["measures"]["score"]["value"]
        assert row.cells["score"].estimate.value == pytest.approx(value, abs=1e-3)
    [breakdown, other] = found.breakdowns
    assert (breakdown.first, other.first) == ("without retrieval", "a")
    outcomes = other.groups["all"]["all questions"]
    assert (outcomes.helped, outcomes.hurt) == (0, 0)


def test_evaluate_takes_what_is_already_loaded(data, tmp_path):
    changes = ["retriever.query.question=1", "retriever.query.captioned=0", "reader.words=1"]
    corpus = ravqa.Corpus.read(data / "passages.jsonl")
    named = ravqa.evaluate(
        "jsonl", "bm25-retrieval", *changes, data=data, corpus=corpus, output=tmp_path / "a"
    )
    dataset = ravqa.load_dataset("jsonl", data)
    pipeline = ravqa.Pipeline.load("bm25-retrieval", *changes)
    pipeline.prepare(corpus)
    given = ravqa.evaluate(dataset, pipeline, output=tmp_path / "b", controls=["none"])
    for section in ("answers", "retrieval"):
        ours, theirs = (r.results[section]["conditions"]["main"] for r in (given, named))
        assert ours == theirs
    assert named.results["retrieval"]["conditions"]["main"]["PRRecall"]["5"] > 0
    keys = ("pipeline", "retriever", "overrides")
    ours, theirs = ([r.results["provenance"][key] for key in keys] for r in (given, named))
    assert ours == theirs == ["bm25-retrieval", "bm25", changes]
    found = ravqa.compare(named.folder, given.folder, metrics=["score"])
    assert len({row.cells["score"].estimate for row in found.table.rows}) == 1
    again = ravqa.evaluate(dataset, pipeline, output=tmp_path / "e")
    assert again.results["timing"]["prompts_generated"] == 0  # all of them were in the cache
    few = ravqa.load_dataset("jsonl", data, limit=3)
    searching = ravqa.Pipeline.load("bm25-retrieval", *changes, retrieval_only=True)
    made = ravqa.evaluate(few, searching, corpus=corpus, output=tmp_path / "c")
    assert made.results["answers"] is None
    assert made.results["dataset"]["questions"] == 3
    for wrong, message in (
        ({"dataset": dataset, "limit": 3}, "limit: the dataset is already loaded"),
        ({"pipeline": pipeline, "reader": "openai"}, "reader: the pipeline is already built"),
        ({"pipeline": pipeline, "retrieval_only": True}, "retrieval_only differs"),
        ({"pipeline": ravqa.Pipeline(pipeline.retriever)}, "has no settings"),
    ):
        with pytest.raises(UserError, match=message):
            ravqa.evaluate(**{"dataset": "okvqa", "output": tmp_path / "d"} | wrong)
    with pytest.raises(UserError, match="overrides: the pipeline is already built"):
        ravqa.evaluate(dataset, pipeline, "top_k=3")
    assert not (tmp_path / "d").exists()


def test_wrong_arguments_are_named(data, tmp_path):
    with pytest.raises(UserError, match=r"no option 'limt': .*limit"):
        ravqa.evaluate("jsonl", "bm25-retrieval", data=data, limt=3)
    with pytest.raises(UserError, match="no dataset 'okvqaa'"):
        ravqa.evaluate("okvqaa", "bm25-retrieval")
    with pytest.raises(UserError, match="no dataset 'okvqaa'"):
        ravqa.load_dataset("okvqaa")
    with pytest.raises(UserError, match="contains no run"):
        ravqa.compare(tmp_path)
    with pytest.raises(UserError, match="give at least one run"):
        ravqa.compare()
    with pytest.raises(UserError, match=r"no kind of part 'reader': .*readers"):
        ravqa.register("reader", "mine", "a:B", "")
    with pytest.raises(UserError, match=r"package\.module:Name"):
        ravqa.register("readers", "mine", "a.B", "")


def test_a_dataset_is_read_by_its_name(data):
    dataset = ravqa.load_dataset("jsonl", data, limit=2)
    assert isinstance(dataset, Dataset)
    assert [type(q) for q in dataset.questions] == [ravqa.Question] * 2
    assert len(ravqa.load_dataset("okvqa", split="val2014", limit=3).questions) == 3


class Mine(FirstWords):
    """A part."""


def test_a_part_is_registered_by_its_kind(monkeypatch):
    monkeypatch.setattr(READERS, "_entries", dict(READERS._entries))
    ravqa.register("readers", "mine", f"{__name__}:Mine", "for tests")
    assert READERS.get("mine") is Mine
    assert ("mine", "for tests") in list(READERS)


def test_a_corpus_may_be_named_by_a_string(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "1", "text": "It eats leaves."}\n')
    corpus = ravqa.Corpus.read(str(tmp_path / "p.jsonl"))
    assert corpus["1"] == ravqa.Passage("1", "It eats leaves.")
