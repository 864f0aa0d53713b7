"""`ravqa mine`: what a run found and is not relevant, checked passage by passage."""

import json
import shutil

import pytest
from report_files import write_dataset, write_run

from ravqa.cli import main
from ravqa.core.settings import validate
from ravqa.training.examples import load_examples
from ravqa.training.sources import TrainingSource


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", data)


def mine(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["mine", *map(str, arguments)])
    return end.value.code


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def truth(data, run):
    """For each question its hits, those that hold an answer, and all scores, read by hand."""
    passages = {
        row["passage_id"]: f"{row['title']}: {row['text']}" if "title" in row else row["text"]
        for row in lines_of(data / "passages.jsonl")
    }
    found = {}
    for sample in lines_of(run / "samples.jsonl"):
        hits = [name for name, _ in sample["hits"]]
        answers = [answer.strip().lower() for answer in sample["answers"]]
        held = [n for n in hits if any(a in passages[n].lower() for a in answers)]
        found[sample["question_id"]] = hits, held, dict(sample["hits"])
    return found


@pytest.mark.parametrize(("limit", "skip"), [(20, 0), (2, 0), (3, 2)])
def test_negatives_hold_no_answer_and_keep_order_and_scores(data, run, tmp_path, limit, skip):
    output = tmp_path / "new" / "negatives.jsonl"
    assert mine(run, "--output", output, "--limit", limit, "--skip", skip) == 0
    expected = truth(data, run)
    lines = lines_of(output)
    assert [line["question_id"] for line in lines] == list(expected)
    assert any(line["negatives"] for line in lines)
    assert any(line["positives"] for line in lines)
    for line in lines:
        hits, held, scores = expected[line["question_id"]]
        wanted = [name for name in hits[skip:] if name not in held][:limit]
        assert [p["id"] for p in line["negatives"]] == wanted
        assert [p["id"] for p in line["positives"]] == held
        assert all(p["score"] == scores[p["id"]] for p in line["negatives"] + line["positives"])


def test_a_file_of_negatives_and_the_run_itself_train_alike(data, run, tmp_path):
    output = tmp_path / "negatives.jsonl"
    assert mine(run, "--output", output) == 0
    source = {
        "dataset": "jsonl",
        "data": str(data),
        "corpus": [str(data / "passages.jsonl")],
    }
    found = [
        load_examples(validate(TrainingSource, {**source, "negatives": str(path)}, "test"), "test")
        for path in (output, run)
    ]
    expected = truth(data, run)
    for of_file, of_run in zip(found[0].examples, found[1].examples, strict=True):
        hits, held, scores = expected[of_run.question.question_id]
        assert of_file.negatives == of_run.negatives
        assert list(of_run.negatives) == [name for name in hits if name not in held]
        assert of_file.scores == of_run.scores == scores


def test_mistakes_are_one_line(data, run, tmp_path, capsys):
    output = tmp_path / "negatives.jsonl"
    output.write_text("mine\n")
    assert mine(run, "--output", output) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert output.read_text() == "mine\n"
    assert mine(tmp_path, "--output", tmp_path / "x.jsonl") == 2
    assert "contains no run" in capsys.readouterr().err
    copy = shutil.copytree(run, tmp_path / "copy")
    elsewhere = tmp_path / "elsewhere"
    assert mine(copy, "--output", tmp_path / "x.jsonl", "--data", elsewhere) == 2
    assert "its questions and passages are needed" in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()
