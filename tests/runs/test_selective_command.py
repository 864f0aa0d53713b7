"""`ravqa selective`: outcomes, confidences, and thresholds chosen on other questions."""

import json

import pytest
import yaml
from hand_runs import answered, write

from ravqa.cli import main
from ravqa.evaluation.schema import SelectiveResults, parsed


def rows(first, count, **changes):
    """Samples whose confidence is their number's rest; those of 5 and more are right."""
    return [
        answered(
            i,
            float(i % 8 >= 5),
            question=f"What is {i}?",
            answer="a" if i % 8 >= 5 else "b",
            log_prob=(i % 8) / 8 - 1,
            **changes,
        )
        for i in range(first, first + count)
    ]


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["selective", *map(str, arguments)])
    printed = capsys.readouterr()
    return end.value.code, printed.out, printed.err


def refused(capsys, *arguments):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    return err


@pytest.fixture
def test_run(tmp_path):
    return write(tmp_path / "test", rows(100, 40))


def test_a_run_alone_has_outcomes_and_confidences(test_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = call(capsys, test_run)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines() if line.strip()] == [
        "Right, wrong and refused: Own, test, 40 questions".split(),
        ["refused,"],
        "answer refused".split(),
        "right wrong found rightly +1/0/-1 95 % interval".split(),
        ["─" * 66],
        "retrieval 15 25 0 0 -25.0 [-55.0, 5.0]".split(),
        "Confidences, right against wrong: Own, test, 40 questions".split(),
        "AUROC % 95 % interval AURC % 95 % interval ECE % Brier %".split(),
        ["─" * 71],
        "log_prob 100.0 - 29.3 [16.3, 48.6] 38.1 16.8".split(),
        "An AUROC of 50 tells nothing; of AURC, ECE and Brier score, less is better.".split(),
    ]


def test_a_threshold_is_applied_to_other_questions(test_run, tmp_path, capsys):
    # On these, the answers of confidence 5 are wrong too.
    dev = [
        {**row, "right": False, "score": 0.0} if row["question_id"] % 8 == 5 else row
        for row in rows(0, 40)
    ]
    write(tmp_path / "dev", dev)
    output = tmp_path / "found.json"
    arguments = ["--calibrate", tmp_path / "dev", "--target-risk", "0,.3,0.5", "--output", output]
    code, out, _ = call(capsys, test_run, *arguments)
    assert code == 0
    assert f"Thresholds were chosen on {tmp_path / 'dev'}, 40 questions." in out
    found = parsed(SelectiveResults, output.read_bytes(), "")
    assert found["selective"]["confidences"]["log_prob"]["AUROC"]["value"] == 100
    zero, third, half = found["thresholds"]
    # Dev: risk 0 down to 6; 1/3 down to 5; 2/4 down to 4. Test: right from 5.
    assert zero["threshold"] == 6 / 8 - 1
    assert zero["chosen_with"] == {"coverage": 25, "risk": 0}
    assert (zero["coverage"]["value"], zero["risk"]["value"]) == (25, 0)
    assert third["threshold"] == zero["threshold"]
    assert half["threshold"] == 4 / 8 - 1
    assert half["chosen_with"] == {"coverage": 50, "risk": 50}
    assert (half["coverage"]["value"], half["risk"]["value"]) == (50, 25)
    low, high = half["risk"]["interval_95"]
    assert 0 <= low < 25 < high < 60
    code, _, err = call(capsys, test_run, "--output", output)
    assert code == 2
    assert "--overwrite" in err


def test_where_no_threshold_keeps_the_risk_nothing_is_answered(test_run, tmp_path, capsys):
    wrong = [{**row, "right": False, "score": 0.0} for row in rows(0, 16)]
    write(tmp_path / "dev", wrong)
    output = tmp_path / "found.json"
    assert call(capsys, test_run, "--calibrate", tmp_path / "dev", "--output", output)[0] == 0
    [found] = json.loads(output.read_text())["thresholds"]
    assert found == {
        "confidence": "log_prob",
        "target_risk": 20,
        "threshold": None,
        "chosen_with": {"coverage": 0, "risk": None},
        "coverage": {"value": 0, "interval_95": [None, None]},
        "risk": None,
    }


def test_a_control_is_named_after_its_run(tmp_path, capsys):
    none = rows(0, 12, hits=[])
    folder = write(tmp_path / "run", rows(0, 12), {"none": none})
    code, out, _ = call(capsys, f"{folder}:none")
    assert code == 0
    assert "\nnone " in out
    assert "\nretrieval " not in out
    assert "\nretrieval " in call(capsys, folder)[1]
    assert refused(capsys, f"{folder}:random") == (
        f"error: the run in {folder} has no samples.random.jsonl\n"
    )


def test_choosing_and_reporting_on_the_same_questions_or_images_is_refused(
    test_run, tmp_path, capsys
):
    rule = "thresholds are chosen on other questions, about other images, than they are applied to"
    assert refused(capsys, test_run, "--calibrate", test_run) == (
        f"error: --calibrate {test_run}: 40 questions of it are in {test_run} too; {rule}\n"
    )
    dev = write(tmp_path / "dev", [*rows(0, 20), rows(120, 1)[0]])
    assert refused(capsys, test_run, "--calibrate", dev) == (
        f"error: --calibrate {dev}: 1 question of it is in {test_run} too; {rule}\n"
    )
    seen = write(tmp_path / "seen", rows(0, 3, image_id=101))
    assert refused(capsys, test_run, "--calibrate", seen) == (
        f"error: --calibrate {seen}: 1 image of it is in {test_run} too; {rule}\n"
    )
    # Data of one's own may be numbered alike.
    alike = rows(100, 40)
    for row in alike:
        row |= {"question": "Another?", "image_id": f"other {row['question_id']}"}
    assert call(capsys, test_run, "--calibrate", write(tmp_path / "alike", alike))[0] == 0


def test_a_run_of_another_pipeline_or_metric_is_refused(test_run, tmp_path, capsys):
    other = write(tmp_path / "other", rows(0, 9), answers={"metric": "vqa_accuracy"})
    assert refused(capsys, test_run, "--calibrate", other) == (
        f"error: {test_run} was scored by exact_match, {other} by vqa_accuracy: a threshold of one "
        "says nothing about the other\n"
    )
    part = write(tmp_path / "part", rows(0, 9), retriever="random")
    config = yaml.safe_load((part / "config.yaml").read_text())
    config["fingerprints"] = {"answerer": "x", "retriever": "y"}
    (part / "config.yaml").write_text(yaml.safe_dump(config))
    assert refused(capsys, test_run, "--calibrate", part) == (
        f"error: {test_run} and {part} are of different pipelines (answerer, retriever): a "
        "threshold of one says nothing about the other\n"
    )


def test_a_control_is_calibrated_on_the_same_control(tmp_path, capsys):
    test = write(tmp_path / "test", rows(100, 12), {"none": rows(100, 12)})
    dev = write(tmp_path / "dev", rows(0, 12), {"none": rows(0, 12)})
    assert call(capsys, f"{test}:none", "--calibrate", f"{dev}:none")[0] == 0
    assert refused(capsys, f"{test}:none", "--calibrate", dev) == (
        f"error: the answers of {test}:none are without retrieval, those of {dev} with retrieval: "
        "a threshold of one says nothing about the other\n"
    )


def test_a_split_in_place_of_a_run_is_answered_with_what_to_run(test_run, capsys):
    assert refused(capsys, test_run, "--calibrate", "dev") == (
        "error: --calibrate dev: no such folder; a finished run is expected, such as that of "
        "ravqa run --dataset jsonl --split dev --output DIR\n"
    )


def test_other_mistakes(test_run, tmp_path, capsys):
    unscored = write(tmp_path / "unscored", rows(0, 3), answers=False)
    assert refused(capsys, unscored) == (
        f"error: the answers of the run in {unscored} were not scored\n"
    )
    assert refused(capsys, test_run, "--calibrate", unscored, "--target-risk", "20") == (
        "error: --target-risk 20: numbers from 0 to 1 are expected\n"
    )
    assert refused(capsys, test_run, "--target-risk", "0.2") == (
        "error: --target-risk chooses thresholds on another run: --calibrate RUN names it\n"
    )
    lacking = rows(0, 3)
    for key in ("score", "raw_score", "exact_match", "right"):
        del lacking[1][key]
    folder = write(tmp_path / "lacking", lacking)
    assert refused(capsys, folder) == f"error: {folder}, main: question 1 has no score\n"


def test_a_run_without_a_confidence_says_so(tmp_path, capsys):
    folder = write(tmp_path / "run", [answered(1), answered(2)])
    code, out, err = call(capsys, folder)
    assert code == 0
    assert "AUROC" not in out
    assert err == "note: the samples have no confidence that differs between questions\n"
