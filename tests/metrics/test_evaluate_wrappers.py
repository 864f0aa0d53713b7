"""The metrics through the library `evaluate`: loaded from their folders, offline."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ravqa.metrics import hub, infoseek_scores, pseudo_recall_at_k

if find_spec("evaluate") is None:
    pytest.skip("the package evaluate is not installed", allow_module_level=True)

DATA = Path(__file__).parents[1] / "data"

# One process for all four: importing `evaluate` takes seconds, and its caches go to a folder that
# must be named before. It imports all of transformers' pipelines where it finds them, and uses them
# for nothing that is tested here.
CODE = """
import json, sys
sys.modules["transformers"] = None
import evaluate
del sys.modules["transformers"]
from ravqa.metrics import hub
inputs = json.load(open(sys.argv[1], encoding="utf-8"))
found = {}
for key, (name, options, rows) in inputs.items():
    metric = evaluate.load(hub.path(name))
    for prediction, reference in rows:
        metric.add(prediction=prediction, reference=reference)
    found[key] = metric.compute(**options)
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    vqa = json.loads((DATA / "vqa_accuracy.json").read_text(encoding="utf-8"))
    cases = vqa[0]["cases"]
    infoseek = json.loads((DATA / "infoseek.json").read_text(encoding="utf-8"))
    types = {t["data_id"]: t["question_type"] for t in infoseek["question_types"]}
    rows = []
    for p, r in zip(infoseek["predictions"], infoseek["references"], strict=True):
        assert p["data_id"] == r["data_id"]
        numerical = types[r["data_id"]] == "Numerical"
        reference = {
            "data_split": r["data_split"],
            "question_type": types[r["data_id"]],
            "answer_eval": [] if numerical else r["answer_eval"],
            "range": r["answer_eval"][0]["range"] if numerical else [],
        }
        rows.append((p["prediction"], reference))
    evqa = [
        ("the oak", {"answers": ["Oak"], "question": "q", "question_type": "automatic"}),
        ("elm", {"answers": ["oak", "ash"], "question": "q", "question_type": "templated"}),
    ]
    texts = [(["no", "a party"], ["art"]), (["art", "no"], ["art"]), (["no"], ["art"])]
    inputs = {
        "vqa": ("vqa_accuracy", {}, [(c["prediction"], c["answers"]) for c in cases]),
        "always": ("vqa_accuracy", {"normalization": "always"}, [("Pizza", ["pizza"] * 10)]),
        "infoseek": ("infoseek", {}, rows),
        "evqa": ("evqa", {}, evqa),
        "recall": ("pseudo_recall", {"ks": [1, 2]}, texts),
        "word": ("pseudo_recall", {"ks": [1, 2], "rule": "word"}, texts),
    }
    (folder / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", CODE, folder / "inputs.json"],
        cwd=folder,
        env=os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.partition("FOUND")[2])


def test_vqa_accuracy_is_the_official_one(found):
    vqa = json.loads((DATA / "vqa_accuracy.json").read_text(encoding="utf-8"))
    assert found["vqa"] == {"vqa_accuracy": vqa[0]["overall"]}
    assert found["always"] == {"vqa_accuracy": 100}


def test_infoseek_is_the_official_result(found):
    infoseek = json.loads((DATA / "infoseek.json").read_text(encoding="utf-8"))
    assert found["infoseek"] == infoseek["result"]
    assert found["infoseek"] == infoseek_scores(
        infoseek["predictions"], infoseek["references"], infoseek["question_types"]
    )


def test_evqa_names_its_judge(found):
    assert found["evqa"] == {"evqa_score": 50, "judge": "none (exact match only)"}


def test_pseudo_recall_names_its_rule(found):
    assert found["recall"] == {
        "rule": "flmr",
        "pseudo_recall@1": 33.33,
        "pseudo_recall@2": 66.67,
    }
    assert found["word"] == {"rule": "word", "pseudo_recall@1": 33.33, "pseudo_recall@2": 33.33}
    assert pseudo_recall_at_k(["no", "a party"], ["art"], [2]) == {2: 1}


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="vqa_accuracy, infoseek, evqa, pseudo_recall"):
        hub.path("bleu")
