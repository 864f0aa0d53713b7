"""Verdicts are kept as a dataset that runs read."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from PIL import Image
from study_files import call, write_study

from ravqa.core.errors import UserError
from ravqa.datasets.base import DatasetRequest
from ravqa.datasets.files import load_jsonl
from ravqa.doors.feedback import ANSWERED, OPEN, Feedback, Verdict


def photo(colour):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def read(path):
    return load_jsonl(DatasetRequest(data=path))


def verdict(name, right, **options):
    return Verdict(name, f"Question {name}?", photo("red"), "shown", right, **options)


def test_verdicts_are_datasets(tmp_path):
    feedback = Feedback(tmp_path / "feedback")
    feedback.keep(verdict("a", "shown", shown={"pipeline": "sample", "passages": ["p", "q"]}))
    feedback.keep(verdict("b", "the right one"))
    feedback.keep(verdict("c", None))
    answered, unanswered = read(feedback.folder), read(feedback.folder / OPEN)
    assert [(q.question_id, q.answers) for q in answered.questions] == [
        ("a", ("shown",)),
        ("b", ("the right one",)),
    ]
    assert answered.metric == "exact_match"
    first = answered.questions[0]
    assert first.image.read_bytes() == photo("red")
    assert dict(first.extra) == {
        "shown_answer": "shown",
        "pipeline": "sample",
        "passages": ["p", "q"],
    }
    [lacking] = unanswered.questions
    assert (lacking.question_id, lacking.answers, unanswered.metric) == ("c", (), None)
    assert len(list((feedback.folder / "photos").iterdir())) == 1  # the same one


def test_a_second_verdict_replaces_the_first(tmp_path):
    feedback = Feedback(tmp_path)
    (tmp_path / ANSWERED).write_text('not ours\n{"question_id": "x"}\n', encoding="utf-8")
    for right in (None, "first", "second"):
        feedback.keep(verdict("a", right))
    assert (tmp_path / OPEN).read_text(encoding="utf-8") == ""
    lines = (tmp_path / ANSWERED).read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["not ours", '{"question_id": "x"}']
    assert [json.loads(line)["answers"] for line in lines[2:]] == [["second"]]


def test_text_only_questions_and_odd_texts_are_kept(tmp_path):
    feedback = Feedback(tmp_path)
    odd = 'a "quoted"\nline \u2028 and \U0001f428'
    feedback.keep(Verdict("a", odd, None, "shown", odd))
    [question] = read(tmp_path).questions
    assert (question.question, question.answers, question.image) == (odd, (odd,), None)


def test_several_people_at_once_lose_nothing(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: Feedback(tmp_path).keep(verdict(str(i), "yes")), range(12)))
    assert {q.question_id for q in read(tmp_path).questions} == {str(i) for i in range(12)}


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="it is a file"):
        Feedback(tmp_path / "file").check()


@pytest.mark.slow
def test_runs_and_studies_take_what_was_kept(tmp_path, monkeypatch, capsys):
    """The questions that have an answer are scored; those without are answered only."""
    monkeypatch.chdir(tmp_path)
    feedback = Feedback(tmp_path / "feedback")
    for i, animal in enumerate(("koala", "lion", "otter", "heron")):
        right = None if animal == "heron" else animal
        asked = f"which animal is the {animal}"
        feedback.keep(Verdict(f"{i}", asked, photo("red"), "shown", right, {"k": 3}))
    rows = [
        {"passage_id": animal, "text": f"{animal} is which animal the"}
        for animal in ("koala", "lion", "otter", "heron", "bison", "moose")
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "passages.jsonl").write_text(text, encoding="utf-8")
    study = write_study(tmp_path / "study.yaml", datasets=[{"name": "jsonl"}])
    settings = yaml.safe_load(study.read_text(encoding="utf-8"))["set"]
    passages = ["--corpus", "passages.jsonl", "--limit", "10"]
    run = ["run", "--pipeline", "bm25-retrieval", "--dataset", "jsonl", *passages, "--no-report"]
    for name, value in settings.items():
        if name != "reader":
            run += ["--set", f"{name}={value}"]
    run += ["--reader", "first-words", "--set", "reader.words=1"]
    code, _, err = call(capsys, *run, "--data", "feedback", "--output", "runs/right")
    assert (code, err.count("error")) == (0, 0), err
    results = json.loads(Path("runs/right/results.json").read_text(encoding="utf-8"))
    condition = results["answers"]["conditions"]["main"]
    assert (results["answers"]["questions"], condition["score"]) == (3, 100.0)
    code, _, err = call(
        capsys, *run, "--data", f"feedback/{OPEN}", "--predict-only", "--output", "runs/open"
    )
    assert code == 0, err
    [line] = Path("runs/open/samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["answer"] == "heron"
    code, _, err = call(
        capsys, "study", "study.yaml", "--data", "feedback", *passages, "--output", "runs/study"
    )
    assert code == 0, err
    assert Path("runs/study/table.json").is_file()
