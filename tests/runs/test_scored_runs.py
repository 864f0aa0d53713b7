"""`ravqa score RUN`: a finished run's answers are scored again from its folder alone."""

import json

import pytest
from hand_runs import answered, write

from ravqa.cli import main
from ravqa.runs.finished import RunFiles, dataset_of, question_of

RANGE = {"wikidata": 10.0, "range": [9.0, 12.0]}
INFOSEEK = {"metric": "infoseek", "label": "InfoSeek score", "rule": {"strict": True}}


def asked(number, answer, *, question_type="String", forms=("oak",), split="unseen_entity"):
    return answered(
        number,
        answer=answer,
        answer_eval=list(forms),
        question_type=question_type,
        split=f"val_{split}",
    )


@pytest.fixture
def run(tmp_path):
    """A run on InfoSeek whose answers the official rule and Wiki-PRF's score differently."""
    samples = [
        asked(1, "Oak", split="unseen_question"),
        asked(2, "an oak tree", split="unseen_question"),
        asked(3, "oak"),
        asked(4, "elm"),
        asked(5, "11.5 m", question_type="Numerical", forms=[RANGE]),
    ]
    return write(tmp_path / "run", samples, answers=INFOSEEK)


def score(tmp_path, capsys, *arguments):
    output = tmp_path / "scores.json"
    with pytest.raises(SystemExit) as end:
        main(["score", *map(str, arguments), "--output", str(output), "--overwrite"])
    results = json.loads(output.read_text(encoding="utf-8")) if output.exists() else None
    return end.value.code, results, capsys.readouterr()


def test_a_run_is_scored_by_other_rules_without_its_data(run, tmp_path, capsys):
    rules = "wikiprf.test,infoseek.official"
    code, results, printed = score(tmp_path, capsys, run, "--rules", rules)
    assert code == 0, printed.err
    # Wiki-PRF: four answers hold a reference, 11.5 is beyond 10 % of 10. Officially, 1 of 2
    # unseen questions and 2 of 3 unseen entities: 2 / (1/50 + 1/66.67).
    found = {row["rule"]: row["score"] for row in results["rules"]["rules"]}
    assert found == {"wikiprf.test": 60.0, "infoseek": 57.14, "infoseek.official": 57.14}
    assert results["answers"]["conditions"]["main"]["score"] == 57.14
    assert results["retrieval"] is None
    assert results["predictions"]["file"] == str(run / "samples.jsonl")
    assert {e["question_id"] for e in results["rules"]["examples"]} == {2, 5}


def test_questions_of_a_run_are_those_of_its_samples(run):
    files = RunFiles.read(run)
    dataset = dataset_of(files.results, files.samples(), run)
    assert (dataset.name, dataset.label, dataset.metric) == ("jsonl", "Own", "infoseek")
    last = dataset.questions[-1]
    assert (last.answer_eval, last.question_type) == ((RANGE,), "Numerical")
    assert (last.question_id, last.image_id, last.split) == (5, 5, "val_unseen_entity")
    chosen = answered(1, choices=["a", "b"], correct_choice=1)
    assert (question_of(chosen).choices, question_of(chosen).right_choice) == (("a", "b"), "b")
    assert question_of(answered(1)).answer_eval == ()


def test_a_runs_metric_keeps_its_options(tmp_path):
    rule = {"normalization": "always", "judge": None}
    answers = {"metric": "vqa_accuracy", "label": "VQA accuracy", "rule": rule}
    files = RunFiles.read(write(tmp_path / "run", [answered(1)], answers=answers))
    found = dataset_of(files.results, files.samples(), files.folder)
    assert found.answer_metric.config.normalization == "always"


def test_what_cannot_be_scored_is_refused(run, tmp_path, capsys):
    code, _, printed = score(tmp_path, capsys, run, "--dataset", "infoseek")
    assert (code, printed.err) == (
        2,
        f"error: --dataset: {run} has questions of its own\n",
    )
    file = run / "samples.jsonl"
    code, _, printed = score(tmp_path, capsys, file)
    assert code == 2
    assert "error: --dataset NAME is missing: the dataset that was answered" in printed.err
    silent = write(tmp_path / "silent", [answered(1)], answers=False)
    code, _, printed = score(tmp_path, capsys, silent)
    assert (code, printed.err) == (
        2,
        f"error: the run in {silent} has no answers that were scored\n",
    )
    old = [{k: v for k, v in asked(1, "oak").items() if k != "answer_eval"}]
    code, _, printed = score(tmp_path, capsys, write(tmp_path / "old", old, answers=INFOSEEK))
    assert code == 2
    what = "cannot be scored again: question 1: no 'answer_eval'"
    assert printed.err == f"error: the run in {tmp_path / 'old'} {what}\n"
