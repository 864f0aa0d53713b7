"""Questions with choices through a run, its files, and `ravqa score`."""

import json
from dataclasses import replace

import pytest
from dataset_files import write_image

from ravqa.cli import main
from ravqa.datasets.base import DatasetRequest, load_dataset
from ravqa.metrics import aokvqa_direct_answer
from ravqa.pipeline import check_settings
from ravqa.runs.load import needs_of_data
from ravqa.runs.options import RunRequest
from ravqa.runs.plan import Data

CHOICES = ["snow", "Rain", "leaves"]
RIGHT = {"a": 1, "b": 0, "c": 2, "d": 1}
# What the reader says, by hand: a choice, a text that gives one, a wrong choice, and none.
SAID = {"a": "Rain", "b": "A: snow", "c": "rain.", "d": "fog"}
TEN = ["Rain"] * 2 + ["fog"] * 8


@pytest.fixture
def folder(tmp_path, fresh_cache):
    """A-OKVQA's form, made up: the reader repeats the end of the question."""
    rows = [
        {"question_id": q, "image_id": 7, "question": f"Passage: {SAID[q]}", "choices": CHOICES}
        | {"correct_choice_idx": right, "direct_answers": TEN, "rationales": []}
        | {"difficult_direct_answer": q == "b"}
        for q, right in RIGHT.items()
    ]
    (tmp_path / "aokvqa_v1p0_val.json").write_text(json.dumps(rows))
    (tmp_path / "say.jinja").write_text("{{ question }}")
    write_image(tmp_path / "val2017" / "000000000007.jpg")
    return tmp_path


@pytest.fixture
def call(folder, capsys):
    def run(command, *arguments, setting="multiple_choice", fails=False):
        fixed = ["--dataset", "aokvqa", "--data", folder]
        fixed += ["--dataset-option", f"setting={setting}"]
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in (command, *fixed, *arguments)])
        printed = capsys.readouterr()
        assert (end.value.code != 0) == fails, printed.err
        if fails:
            return " ".join(printed.err.split())
        return " ".join(printed.out.split())

    return run


@pytest.fixture
def answer(folder, call):
    def run(name, *arguments, setting="multiple_choice"):
        fixed = ["--retriever", "none", "--reader", "first-words", "--set", "describer=null"]
        fixed += ["--set", f"answering.prompt={folder / 'say.jinja'}", "--output", folder / name]
        printed = call("run", *fixed, *arguments, setting=setting)
        results = json.loads((folder / name / "results.json").read_text())
        lines = (folder / name / "samples.jsonl").read_text().splitlines()
        samples = {s["question_id"]: s for s in map(json.loads, lines)}
        return results, samples, printed

    return run


def test_choices_are_answered_scored_and_written(folder, answer, call):
    results, samples, printed = answer("run")
    answers = results["answers"]
    scores = answers["conditions"]["main"]
    assert answers["metric"] == "aokvqa_multiple_choice"
    assert (scores["score"], scores["no_choice"]) == (50, 1)  # "a" and "b" of four
    assert scores["raw"]["score"] == 25  # letter by letter, only "a"
    assert answers["rule"] == {"choices": "named"}
    assert "answers became choices by the rule named" in printed
    assert "Answers became choices by the rule named." in (folder / "run/report.html").read_text()
    assert "1 answer is none of the question's choices, which counts as wrong" in printed
    assert {q: s["answer"] for q, s in samples.items()} == (
        {"a": "Rain", "b": "snow", "c": "Rain", "d": "fog"}
    )
    assert [samples[q]["correct_choice"] for q in RIGHT] == list(RIGHT.values())
    assert samples["d"]["choices"] == CHOICES
    written = json.loads((folder / "run" / "predictions.json").read_text())
    assert written["b"] == {"multiple_choice": "snow"}

    for name in ("samples.jsonl", "predictions.json"):
        output = folder / f"{name}.scored"
        call("score", folder / "run" / name, "--output", output)
        scored = json.loads(output.read_text())["answers"]
        assert scored["metric"] == "aokvqa_multiple_choice"
        again = scored["conditions"]["main"]
        assert (again["score"], again["no_choice"]) == (50, 1)

    resumed, _, _ = answer("run", "--resume")
    assert resumed["answers"] == answers


def test_direct_answers_know_no_choices(folder, answer, call):
    results, samples, _ = answer("run", setting="direct_answer")
    # "b" is difficult; "rain" and "rain." are no annotator's, since short answers are lower-case.
    assert {q: s["answer"] for q, s in samples.items()} == {"a": "rain", "c": "rain", "d": "fog"}
    assert results["answers"]["metric"] == "aokvqa_direct_answer"
    assert results["answers"]["conditions"]["main"]["score"] == pytest.approx(100 / 3, abs=1e-4)
    assert results["dataset"]["left_out"] == 1
    assert not any("choices" in sample for sample in samples.values())

    both = {q: {"multiple_choice": "x", "direct_answer": said} for q, said in SAID.items()}
    (folder / "both.json").write_text(json.dumps(both))
    call("score", folder / "both.json", "--output", folder / "s.json", setting="direct_answer")
    scored = json.loads((folder / "s.json").read_text())["answers"]["conditions"]["main"]
    mean = sum(aokvqa_direct_answer(SAID[q], TEN) for q in "acd") / 3
    assert scored["score"] == pytest.approx(100 * mean, abs=1e-4)
    assert mean == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_what_does_not_fit_the_choices_is_said_before_anything_is_loaded(folder, call):
    fixed = ["run", "--retriever", "none", "--output", folder / "run"]
    said = call(
        *fixed, "--set", "answering.decision=likeliest_choice", setting="direct_answer", fails=True
    )
    assert said.endswith(
        "error: answering.decision likeliest_choice chooses among a question's choices, but no "
        "question of A-OKVQA has any"
    )
    config = check_settings({"retriever": {"name": "none"}, "reader": {"name": "first-words"}}, "")
    data = DatasetRequest(data=folder, options={"setting": "multiple_choice"})
    given = Data(load_dataset("aokvqa", data), None, ())
    request = RunRequest(dataset="aokvqa")
    assert needs_of_data(request, config, given).notes == [
        "the prompt short-answer.jinja does not show the questions' choices: "
        "answering.prompt=multiple-choice does"
    ]
    retrieval = replace(request, retrieval_only=True)
    assert needs_of_data(retrieval, config, given).notes == []
