"""A judge in the pipeline's settings: E-VQA's answers are scored with it, and results name it."""

import csv
import json

import pytest

from ravqa.cli import main
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict
from ravqa.metrics.judges import JUDGES
from ravqa.metrics.judges.base import Judge

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

    def __init__(self, config):
        self.name = f"tower ({config.model})"
        self.fingerprint = self.name

    def judge(self, questions, references, candidates):
        TowerJudge.seen += len(references)
        return [
            float("nan") if "Alps" in one else float("tower" in one and "tower" in other)
            for one, other in zip(references, candidates, strict=True)
        ]


@pytest.fixture(autouse=True)
def judge(monkeypatch, fresh_cache):
    TowerJudge.seen = 0
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
        fixed += ["--output", tmp_path / output]
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
    assert "1 of 3 judgements gave no verdict" in err
    assert TowerJudge.seen == 3  # once each, though scored for the samples and for the results


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
        ("judge=tower", "key 'judge'"),
    ],
)
def test_a_wrong_judge_is_named_before_anything_is_read(run, data, change, message):
    (data / "test.csv").unlink()
    code, _, _, err = run("--set", change)
    assert code == 2
    assert message in err


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
