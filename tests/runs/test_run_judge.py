"""A judge in the pipeline's settings: E-VQA's answers are scored with it, and results name it."""

import csv
import json
from typing import ClassVar

import pytest

from ravqa.cli import main
from ravqa.core.outcomes import Failure
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict
from ravqa.evaluation.answers import known_scores
from ravqa.metrics import refusals
from ravqa.metrics.judges import JUDGES
from ravqa.metrics.judges.base import Judge, NotAttempted
from ravqa.pipeline import Pipeline

URL = "https://en.wikipedia.org/wiki/Fir"
# First words of the first passage: "tall as towers".
PASSAGE = {"passage_id": f"{URL}#0", "text": "Tall as towers it grows.", "article": URL}
QUESTIONS = [  # question, type, reference
    ("How tall is it?", "templated", "tall as towers"),
    ("How high does it get?", "automatic", "like a tower"),
    ("What grows?", "multi_answer", "fir&&towers"),
    ("Where does it grow?", "2_hop", "in the Alps"),
]


class TowerJudge(Judge):
    """Finds equivalent what speaks of towers, has no verdict on the Alps, and counts its work."""

    class Config(Strict):
        model: str = "a"

    seen = 0
    fails: ClassVar = {}  # by reference

    def __init__(self, config):
        self.name = f"tower ({config.model})"
        self.fingerprint = self.name

    def judge(self, questions, references, candidates):
        TowerJudge.seen += len(references)
        return [
            TowerJudge.fails[one]
            if one in TowerJudge.fails
            else float("nan")
            if "Alps" in one
            else float("tower" in one and "tower" in other)
            for one, other in zip(references, candidates, strict=True)
        ]


@pytest.fixture(autouse=True)
def judge(monkeypatch, fresh_cache):
    TowerJudge.seen = 0
    TowerJudge.fails = {}
    monkeypatch.setitem(JUDGES._entries, "tower", Entry(f"{__name__}:TowerJudge", "for tests"))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    columns = ["question", "answer", "dataset_image_ids", "dataset_name", "question_type"]
    with (folder / "test.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "wikipedia_url"])
        for question, kind, answer in QUESTIONS:
            writer.writerow([question, answer, "abc1", "landmarks", kind, URL])
    (folder / "passages.jsonl").write_text(json.dumps(PASSAGE) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def run(data, tmp_path, capsys):
    """Runs E-VQA with a reader that copies; gives exit code, results, stdout, stderr."""

    def call(*arguments, output="run"):
        fixed = ["run", "--dataset", "evqa", "--data", data, "--corpus", data / "passages.jsonl"]
        fixed += ["--set", "describer=null", "--retriever", "random", "--reader", "first-words"]
        fixed += ["--output", tmp_path / output, "--no-report"]
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in [*fixed, *arguments]])
        path = tmp_path / output / "results.json"
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        printed = capsys.readouterr()
        return end.value.code, results, printed.out, printed.err

    return call


def test_the_judge_of_the_settings_scores_evqa(run, tmp_path):
    code, results, _, _ = run()
    assert code == 0
    dataset = results["dataset"]
    assert (dataset["images"], dataset["asked_about"]) == (1, "first image")
    section = results["answers"]
    assert section["rule"] == {"judge": "none (exact match only)", "judge_fingerprint": None}
    assert section["conditions"]["main"]["score"] == 25.0

    code, results, out, err = run("--set", "judge.name=tower", output="judged")
    assert code == 0, err
    section = results["answers"]
    assert section["rule"] == {"judge": "tower (a)", "judge_fingerprint": "tower (a)"}
    # The first matches; of the others, all but the Alps are judged equivalent.
    assert section["conditions"]["main"]["score"] == 75.0
    samples = (tmp_path / "judged" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["score"] for line in samples] == [1.0, 1.0, 1.0, 0.0]
    assert "judge: tower (a)" in out
    assert "1 of 4 answers got no verdict from the judge and count as wrong" in err
    [unjudged] = section["conditions"]["main"]["unjudged"]
    assert unjudged["reason"] == "the judge gave no verdict"
    assert json.loads(samples[3])["unjudged"] == unjudged["reason"]
    assert TowerJudge.seen == 3  # once each, though scored for the samples and for the results


LOST = {"like a tower": Failure("the judge was lost")}
JUDGED = ("--set", "judge.name=tower")


def ids_and_scores(folder):
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [(s["question_id"][-1], s["score"]) for s in map(json.loads, lines)]


def test_a_failure_of_the_judge_names_the_question_and_costs_no_other_sample(run, tmp_path):
    TowerJudge.fails = LOST
    code, results, _, err = run(*JUDGED)
    assert (code, results) == (2, None)
    line = err.splitlines()[-1]
    assert "question evqa_test_0000001: the judge was lost; --on-error skip" in line
    assert "3 of 4 are answered and kept" in line
    assert ids_and_scores(tmp_path / "run") == [("0", 1.0), ("2", 1.0), ("3", 0.0)]

    TowerJudge.fails = {}
    code, results, _, err = run(*JUDGED, "--resume")
    assert code == 0, err
    condition = results["answers"]["conditions"]["main"]
    assert condition["score"] == 75.0
    assert [entry["question_id"] for entry in condition["unjudged"]] == ["evqa_test_0000003"]


def test_with_skip_an_answer_without_a_verdict_is_wrong_and_listed(run, tmp_path):
    TowerJudge.fails = LOST
    code, results, _, err = run(*JUDGED, "--on-error", "skip", "--controls", "none")
    assert code == 0, err
    condition = results["answers"]["conditions"]["main"]
    assert condition["score"] == 50.0
    assert condition["unjudged"] == [
        {"question_id": "evqa_test_0000001", "reason": "the judge was lost"},
        {"question_id": "evqa_test_0000003", "reason": "the judge gave no verdict"},
    ]
    assert "2 of 4 answers got no verdict from the judge and count as wrong" in err
    assert "question evqa_test_0000001: the judge was lost" in err
    sample = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[1])
    assert (sample["score"], sample["right"]) == (0, False)
    assert sample["unjudged"] == sample["raw_unjudged"] == "the judge was lost"
    # Resumed, or reported on, the run says the same; scored again, the judge is asked again.
    TowerJudge.fails, TowerJudge.seen = {}, 0
    code, again, _, err = run(*JUDGED, "--on-error", "skip", "--controls", "none", "--resume")
    assert code == 0, err
    assert again["answers"] == results["answers"]
    assert TowerJudge.seen == 0


def test_what_the_judge_calls_not_attempted_is_a_refusal(run, tmp_path, monkeypatch):
    monkeypatch.setattr(TowerJudge, "labels", 3)
    TowerJudge.fails = {"like a tower": NotAttempted()}
    code, results, _, err = run(*JUDGED)
    assert code == 0, err
    rule = {"judge": "tower (a)", "judge_fingerprint": "tower (a)", "judge_labels": 3}
    assert results["answers"]["rule"] == rule
    section = results["selective"]
    outcomes = {k: v for k, v in section["outcomes"]["main"].items() if v}
    assert outcomes == {"answered_right": 2, "refused_rightly": 1, "answered_wrong": 1}
    assert section["refusals"] == refusals.RULE_WITH_JUDGE
    assert section["scores"]["main"]["value"] == 25
    lines = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("not_attempted") for line in lines] == [None, True, None, None]
    scores, _ = known_scores([json.loads(line) for line in lines])
    assert [isinstance(score, NotAttempted) for score in scores] == [False, True, False, False]


def test_a_judge_that_is_gone_ends_the_run_and_keeps_what_needs_no_judge(run, tmp_path):
    gone = Failure("the judge is gone", fatal=True)
    TowerJudge.fails = {reference: gone for _, _, reference in QUESTIONS[1:]}
    TowerJudge.fails["fir,towers"] = gone
    for arguments in ((), ("--on-error", "skip", "--overwrite")):
        code, results, _, err = run(*JUDGED, *arguments)
        assert (code, results) == (2, None)
        assert "the judge is gone (questions: 1 of 4 are answered and kept" in err.splitlines()[-1]
        assert ids_and_scores(tmp_path / "run") == [("0", 1.0)]


def test_a_run_judged_by_another_is_not_resumed(run):
    assert run("--set", "judge={name: tower, model: a}")[0] == 0
    code, _, _, err = run("--set", "judge={name: tower, model: b}", "--resume")
    assert code == 2
    assert "had other settings (pipeline.judge.model" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("judge.name=towr", "no judge 'towr': did you mean tower"),
        ("judge={name: tower, modl: x}", "unknown key 'modl': did you mean model"),
        ("judge=5", "key 'judge'"),
    ],
)
def test_a_wrong_judge_is_named_before_anything_is_read(run, data, change, message):
    (data / "test.csv").unlink()
    code, _, _, err = run("--set", change)
    assert code == 2
    assert message in err


def test_a_judge_that_cannot_run_here_is_named_before_models_are_loaded(run, monkeypatch):
    monkeypatch.setattr(Pipeline, "from_config", lambda *_, **__: 1 / 0)
    judge = "judge={name: bem, model: owner/name, device: 'cuda:77'}"
    code, _, _, err = run("--set", judge)
    assert code == 2
    assert "error: judge: the device 'cuda:77' cannot be used: " in err


def test_where_no_judge_is_asked_none_is_built(run, monkeypatch):
    monkeypatch.setattr(TowerJudge, "__init__", lambda *_: 1 / 0)
    for arguments in (["--retrieval-only"], ["--predict-only"]):
        code, _, _, err = run("--set", "judge.name=tower", *arguments, "--overwrite")
        assert code == 0, err


def test_items_of_a_multi_answer_reference_are_looked_for_one_by_one(run, tmp_path):
    assert run("--retrieval-only")[0] == 0
    samples = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ranks = [json.loads(line)["answer_ranks"]["flmr"] for line in samples]
    assert ranks == [[1], [], [1], []]
