"""`ravqa score`: the three forms of predictions, and what is wrong with a file of them."""

import json
import os

import pytest

from ravqa.cli import main
from ravqa.datasets.bundled import DEFAULT, Edition
from ravqa.metrics import infoseek_scores, vqa_accuracies, vqa_accuracy

QUESTIONS = Edition(DEFAULT).folder


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def answers():
    """The reference answers of the sample by question id."""
    path = QUESTIONS / "mscoco_val2014_annotations.json"
    annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
    return {a["question_id"]: [x["answer"] for x in a["answers"]] for a in annotations}


@pytest.fixture
def given(answers):
    """A prediction per question: right, wrong, or another annotator's."""
    return {
        q: ["no such answer", found[0].upper(), found[-1]][i % 3]
        for i, (q, found) in enumerate(answers.items())
    }


@pytest.fixture
def predictions(tmp_path, given):
    path = tmp_path / "predictions.json"
    rows = [{"question_id": q, "answer": a} for q, a in given.items()]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def score(tmp_path, capsys):
    """Runs the command; gives exit code, results (None if none were written), stdout, stderr."""

    def run(path, *options, dataset="okvqa"):
        output = tmp_path / "results.json"
        arguments = ["score", path, "--dataset", dataset, "--output", output, *options]
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        results = json.loads(output.read_text(encoding="utf-8")) if output.exists() else None
        output.unlink(missing_ok=True)
        printed = capsys.readouterr()
        return end.value.code, results, printed.out, printed.err

    return run


def test_vqa_results_are_scored_as_by_hand(score, predictions, given, answers):
    code, results, out, _ = score(predictions)
    values = vqa_accuracies(list(given.values()), list(answers.values()))
    expected = round(100 * sum(values) / len(values), 4)
    assert code == 0
    main_condition = results["answers"]["conditions"]["main"]
    assert main_condition["score"] == expected
    assert main_condition["interval_95"][0] < expected < main_condition["interval_95"][1]
    assert main_condition["exact_match"]["1"] >= expected
    assert results["answers"]["rule"] == {"normalization": "official"}
    assert results["predictions"]["missing"] == []
    assert results["retrieval"] is None
    assert "not OK-VQA" in out
    assert f"{expected:.1f}" in out
    assert "predictions" in out


def test_normalization_always_is_named(score, predictions, given, answers):
    _, results, out, _ = score(predictions, "--normalization", "always")
    values = vqa_accuracies(list(given.values()), list(answers.values()), "always")
    score_by_hand = round(100 * sum(values) / len(values), 4)
    assert results["answers"]["conditions"]["main"]["score"] == score_by_hand
    assert results["answers"]["rule"] == {"normalization": "always"}
    assert "not the official rule" in out
    _, official, _, _ = score(predictions)
    assert score_by_hand > official["answers"]["conditions"]["main"]["score"]


def test_empty_and_failed_answers_are_counted(score, predictions, given, tmp_path):
    rows = [{"question_id": q, "answer": answer} for q, answer in given.items()]
    code, results, out, err = score(predictions)
    assert results["answers"]["conditions"]["main"]["empty"] == 0
    assert "empty answers" not in out
    rows[0]["answer"], rows[1]["answer"], rows[2]["answer"] = "", " \n", "\u200b"
    code, results, out, err = score(write_lines(tmp_path / "p.jsonl", rows))
    assert code == 0, err
    assert results["answers"]["conditions"]["main"]["empty"] == 3
    assert "empty answers: 3" in out
    for row in rows:
        row |= {"hits": [], "answer_ranks": None, "id_ranks": None, "article_ranks": None}
    rows[1] = {**rows[1], "error": "the server was gone"}
    del rows[1]["answer"]
    code, results, out, err = score(write_lines(tmp_path / "p.jsonl", rows))
    assert code == 0, err
    main_condition = results["answers"]["conditions"]["main"]
    assert main_condition["empty"] == 2
    assert [u["reason"] for u in main_condition["unanswered"]] == ["the server was gone"]
    assert "empty answers: 2" in out
    said = "the reader had no answer 1 time, which counts as wrong (listed in"
    assert said in " ".join(out.split())
    # The run knew no references, so its rankings cannot be scored by them.
    assert results["retrieval"] is None
    assert "retrieval is not scored: the run had no references" in err
    rows[4]["answer_ranks"] = {"flmr": [], "ravqa": [], "word": []}
    code, _, _, err = score(write_lines(tmp_path / "p.jsonl", rows))
    assert code == 2
    assert "not a sample of a run ('answer_ranks' is null)" in err


def test_marks_in_predictions_are_counted_and_taken_off_on_request(
    score, predictions, given, answers, tmp_path
):
    rows = [{"question_id": q, "answer": found[0]} for q, found in answers.items()]
    _, clean, out, err = score(write_lines(tmp_path / "clean.jsonl", rows))
    assert clean["predictions"]["marked"] == 0
    assert "--strip-marks" not in err
    right = clean["answers"]["conditions"]["main"]["score"]
    written = ["{}</s>", "<think>a bear?</think> {}", "<|begin_of_box|>{}<|end_of_box|>"]
    for row, form in zip(rows, written, strict=False):
        row["answer"] = form.format(row["answer"])
    rows[3]["answer"] = "<think>it may be a"
    rows[4]["answer"] = "<tool_call>{}</tool_call>"
    rows[5]["answer"] = f" {rows[5]['answer']} "  # no mark
    path = write_lines(tmp_path / "marked.jsonl", rows)
    plain = [row["answer"] for row in rows]
    values = vqa_accuracies(plain, list(answers.values()))
    code, results, out, err = score(path)
    assert code == 0
    # The official rule, to the letter.
    as_written = results["answers"]["conditions"]["main"]["score"]
    assert as_written == round(100 * sum(values) / len(values), 4) < right
    assert results["predictions"]["marked"] == 5
    assert results["predictions"]["marks_removed"] is False
    said = " ".join(err.split())
    assert "5 predictions with thinking or special tokens in the text, scored with" in said
    assert "--strip-marks takes them off" in said
    code, results, out, err = score(path, "--strip-marks")
    assert code == 0
    main_condition = results["answers"]["conditions"]["main"]
    lost = [vqa_accuracy(found[0], found) for found in list(answers.values())[3:5]]
    assert main_condition["score"] == pytest.approx(right - 100 * sum(lost) / len(rows), abs=1e-3)
    assert main_condition["empty"] == 2  # what was cut off and what calls a tool says nothing
    assert results["predictions"]["marked"] == 5
    assert results["predictions"]["marks_removed"] is True
    assert results["answers"]["rule"] == {"normalization": "official", "marks": "removed"}
    assert "these were taken off, as no official rule does" in " ".join(err.split())
    assert "without marks of thinking (not the official rule)" in out


def test_infoseek_predictions_are_scored_by_the_official_rule(score, tmp_path):
    references = lines(QUESTIONS / "infoseek_val.jsonl")
    types = lines(QUESTIONS / "infoseek_val_qtype.jsonl")
    rows = [
        {"data_id": r["data_id"], "prediction": str(r["answer"][0]) if i % 2 else "no idea"}
        for i, r in enumerate(references)
    ]
    code, results, out, _ = score(write_lines(tmp_path / "p.jsonl", rows), dataset="infoseek")
    expected = infoseek_scores(rows, references, types)
    assert code == 0
    found = results["answers"]["conditions"]["main"]
    assert found["score"] == expected["final_score"]
    assert found["splits"]["unseen_entity"] == expected["unseen_entity_score"]
    assert "InfoSeek score" in out
    code, results, _, _ = score(
        write_lines(tmp_path / "p.jsonl", rows[:-10]), "--allow-partial", dataset="infoseek"
    )
    expected = infoseek_scores(rows[:-10], references, types)
    assert expected["missing"] == len(results["predictions"]["missing"]) == 10
    assert results["answers"]["conditions"]["main"]["score"] == expected["final_score"]


@pytest.fixture
def finished(tmp_path):
    """A run without models."""
    folder = tmp_path / "run"
    arguments = ["run", "--dataset", "okvqa", "--limit", "12", "--output", folder]
    arguments += ["--retriever", "random", "--reader", "first-words", "--set", "describer=null"]
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    assert end.value.code == 0
    return folder


def test_samples_of_a_run_give_the_runs_scores_again(score, finished):
    before = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    code, results, out, err = score(finished / "samples.jsonl", "--allow-partial")
    assert code == 0
    assert f"{results['dataset']['questions'] - 12} ids are missing" in err  # the run had a limit
    share = 12 / results["dataset"]["questions"]
    old, new = (r["answers"]["conditions"]["main"]["score"] for r in (before, results))
    assert new == pytest.approx(old * share, abs=0.01)  # the missing count as wrong
    # Nothing was retrieved for them, right or wrong.
    assert results["retrieval"]["questions"] == 12
    old, new = (r["retrieval"]["conditions"]["main"]["PRRecall"] for r in (before, results))
    assert new == old
    assert "Retrieval, PRRecall %" in out
    hits = before["answers"]["conditions"]["main"]["hits"]
    assert sum(hits["documents"].values()) == pytest.approx(100, abs=0.05)
    assert results["answers"]["conditions"]["main"]["hits"] == hits


def test_incomplete_duplicate_and_unknown_predictions_are_named(score, predictions, tmp_path):
    rows = json.loads(predictions.read_text(encoding="utf-8"))
    first, second, *rest = rows
    broken = [*rest, {**second, "answer": "other"}, second, {"question_id": 7, "answer": "x"}]
    path = write_lines(tmp_path / "broken.jsonl", broken)
    code, results, _, err = score(path)
    assert code == 2
    assert results is None
    assert len(err.strip().splitlines()[-1]) < 400
    for part in (
        f"1 id is missing ({first['question_id']})",
        f"1 id is predicted more than once ({second['question_id']})",
        "split val2014 (7)",
        "--allow-partial",
    ):
        assert part in err
    code, results, _, err = score(path, "--allow-partial")
    assert code == 0
    assert "1 id is missing" in err
    counted = results["predictions"]
    assert counted["missing"] == [first["question_id"]]
    assert counted["duplicates"] == [second["question_id"]]
    assert counted["unknown"] == ["7"]
    code, _, _, err = score(write_lines(tmp_path / "few.jsonl", rest[:5]))
    assert code == 2
    assert f"{len(rows) - 5} ids are missing" in err
    assert ", ...)" in err


def test_a_missing_prediction_is_wrong_even_where_blank_would_be_right(
    score, predictions, tmp_path, answers, given
):
    # an annotator's blank answer equals a blank prediction, not a missing one
    assert vqa_accuracy("", ["", "", "", "", "a"]) == 1
    rows = json.loads(predictions.read_text(encoding="utf-8"))
    kept = write_lines(tmp_path / "kept.jsonl", rows[1:])
    _, results, _, _ = score(kept, "--allow-partial")
    values = vqa_accuracies(list(given.values())[1:], list(answers.values())[1:])
    expected = round(100 * sum(values) / (len(values) + 1), 4)
    assert results["answers"]["conditions"]["main"]["score"] == expected


def test_of_several_predictions_the_last_one_counts(score, predictions, tmp_path, answers):
    rows = json.loads(predictions.read_text(encoding="utf-8"))
    right = [{"question_id": q, "answer": found[0]} for q, found in answers.items()]
    path = write_lines(tmp_path / "twice.jsonl", [*rows, *right])
    _, results, _, _ = score(path, "--allow-partial")
    _, once, _, _ = score(write_lines(tmp_path / "once.jsonl", right))
    assert results["answers"] == once["answers"]
    assert len(results["predictions"]["duplicates"]) == len(rows)


def test_ids_may_be_strings(score, predictions, tmp_path):
    rows = json.loads(predictions.read_text(encoding="utf-8"))
    _, expected, _, _ = score(predictions)
    renamed = [{"question_id": str(r["question_id"]), "prediction": r["answer"]} for r in rows]
    _, results, _, _ = score(write_lines(tmp_path / "s.jsonl", renamed))
    assert results["answers"] == expected["answers"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no predictions"),
        ("[]", "contains no predictions"),
        ("[1]", "record 1: an object is expected"),
        ('[{"question_id": 1}]', "record 1: no 'answer' or 'prediction'"),
        ('{"answer": "x"}', "is one JSON object (its keys: 'answer')"),
        ('{"question_id": 1, "answer": null}', "line 1: 'answer' is None"),
        ('{"question_id": 1, "answer": 5}', "a string is expected"),
        ('{"question_id": 1, "answer": NaN}', "'answer' is nan: a string is expected"),
        ('{"question_id": 1, "data_id": true, "answer": "x"}', "'data_id' is True"),
        ('{"question_id": true, "answer": "x"}', "'question_id' is True"),
        ('{"question_id": 1, "answer": "x"', "line 1: not JSON"),
        ('[{"question_id": 1, "answer"', "not JSON"),
        (
            '{"question_id": 1, "answer": "x", "prediction": "y"}',
            "'answer' and 'prediction' differ",
        ),
        ('{"question_id": 1, "data_id": "2", "answer": "x"}', "'question_id' and 'data_id' differ"),
        (
            '{"question_id": 1, "answer": "x"}\n{"question_id": 2, "answer": "y", "hits": []}',
            "line 1: not a sample of a run (key 'answer_ranks' is missing)",
        ),
        (
            '{"question_id": 1, "answer": "x", "hits": [["p", 1.0]], "answer_ranks": null, '
            '"id_ranks": [2], "article_ranks": null}',
            "line 1: not a sample of a run (key 'id_ranks': [2] are not the ranks of",
        ),
        (
            '{"question_id": 1, "answer": "x", "hits": 3, "answer_ranks": null, "id_ranks": null, '
            '"article_ranks": null}',
            "line 1: not a sample of a run (key 'hits'",
        ),
    ],
)
def test_broken_files_are_named_with_their_place(score, tmp_path, text, message):
    path = tmp_path / "broken.file"
    path.write_text(text, encoding="utf-8")
    code, results, _, err = score(path)
    assert (code, results) == (2, None)
    assert message in err
    assert "broken.file" in err


def test_a_pipe_is_not_waited_for(score, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    code, _, _, err = score(tmp_path / "pipe.jsonl")
    assert code == 2
    assert "pipe.jsonl is a pipe, socket or device, where a file is expected" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge", "bem", "--set", "judge.model=x"], "the scores of okvqa use no judge"),
        (["--set", "judge.model=x"], "judge.KEY=VALUE is expected, with --judge"),
        (["--seed", "-1"], "0 or more is needed"),
        (["--dataset", "okvq"], "did you mean okvqa"),
        (["--split", "nowhere"], "no split 'nowhere'"),
        (["--output", "/nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(score, predictions, options, message):
    code, _, _, err = score(predictions, *options)
    assert code == 2
    assert message in err


def test_no_results_are_overwritten_unless_told(predictions, tmp_path, capsys):
    output = tmp_path / "kept.json"
    output.write_text("mine", encoding="utf-8")
    arguments = ["score", str(predictions), "--dataset", "okvqa", "--output", str(output)]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == "mine"
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--overwrite"])
    assert end.value.code == 0
    assert json.loads(output.read_text(encoding="utf-8"))["answers"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.json", "predictions.json"]


def test_own_question_types_change_no_exact_match(score, tmp_path):
    rows = [
        {"question_id": i, "question": "?", "answers": [answer], "question_type": kind}
        for i, (answer, kind) in enumerate([("12 m", "Numerical"), ("The oak", "Time")])
    ]
    questions = write_lines(tmp_path / "questions.jsonl", rows)
    given = [{"question_id": 0, "answer": "12 m."}, {"question_id": 1, "answer": "elm"}]
    path = write_lines(tmp_path / "predictions.jsonl", given)
    code, results, _, err = score(path, "--data", questions, dataset="jsonl")
    assert code == 0, err
    main_condition = results["answers"]["conditions"]["main"]
    assert main_condition["score"] == 50.0
    assert main_condition["exact_match"] == {"1": 50.0}
    assert {kind: group["mean"] for kind, group in main_condition["groups"].items()} == {
        "Numerical": 100.0,
        "Time": 0.0,
    }


def test_no_image_is_looked_for(score, predictions, tmp_path, monkeypatch):
    monkeypatch.setattr("ravqa.images.folder.ImageFolder.find", lambda *_, **__: 1 / 0)
    path = write_lines(
        tmp_path / "infoseek.jsonl",
        [
            {"data_id": row["data_id"], "prediction": "x"}
            for row in lines(QUESTIONS / "infoseek_val.jsonl")
        ],
    )
    code, _, _, err = score(path, dataset="infoseek")
    assert code == 0, err


@pytest.mark.parametrize("name", ["samples.jsonl", "results.json", "run.trec", "report.html"])
def test_files_of_a_run_are_not_replaced(tmp_path, predictions, capsys, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    (folder / name).write_text("of the run")
    arguments = ["score", str(predictions), "--dataset", "okvqa", "--overwrite"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--output", str(folder / name)])
    assert end.value.code == 2
    assert "is a file of a run: choose another --output" in capsys.readouterr().err
    assert (folder / name).read_text() == "of the run"
    assert (folder / name).read_text() == "of the run"
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--output", str(folder / "scores.json")])
    assert end.value.code == 0


def test_rules_are_compared_and_where_they_disagree_is_shown(score, predictions, given, answers):
    rules = "vqa.official,flashrag.em,lavis.aok_vqa"
    code, results, out, err = score(predictions, "--rules", rules, "--examples", "1")
    assert code == 0, err
    section = results["rules"]
    found = {row["rule"]: row["score"] for row in section["rules"]}
    assert found.keys() == {"vqa_accuracy", *rules.split(",")}
    exact = [min(1, answers[q].count(text) / 3) for q, text in given.items()]
    assert found["lavis.aok_vqa"] == round(100 * sum(exact) / len(exact), 4)
    assert found["vqa_accuracy"] == results["answers"]["conditions"]["main"]["score"]
    low, high = section["rules"][-1], section["rules"][0]
    told = " ".join(out.split())
    assert f"scores {low['score']:.1f} ({low['rule']}) to {high['score']:.1f}" in told
    [example] = section["examples"]
    assert f"question {example['question_id']}: {example['question']}" in told
    own_is_right = "vqa_accuracy" in example["right"]
    said, others = ("right", "wrong") if own_is_right else ("wrong", "right")
    assert (
        f"{said} by vqa_accuracy, {others} by {example['disagree']} of 4 rules: "
        f"{', '.join(example[others])} "
    ) in f"{told} "
    assert "rules" not in score(predictions)[1]


def test_rules_that_cannot_be_asked_are_refused(score, predictions):
    for options, message in (
        (["--rules", "vqa.offical"], "--rules: no metric 'vqa.offical': did you mean vqa.official"),
        (["--rules", "evqa.official"], "--rules evqa.official: it is for questions that are E-VQA"),
        (["--judge", "bem"], "the scores of okvqa use no judge (metric vqa_accuracy); some of"),
    ):
        code, results, _, err = score(predictions, *options)
        assert (code, results) == (2, None)
        assert message in " ".join(err.split())
