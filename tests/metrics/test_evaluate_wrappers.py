"""The metrics through the library `evaluate`: loaded from their folders, offline."""

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from table_judge import ByTable

from ravqa.metrics import hub, infoseek_scores, pseudo_recall_at_k

if find_spec("evaluate") is None:
    pytest.skip("the package evaluate is not installed", allow_module_level=True)

DATA = Path(__file__).parents[1] / "data"
CLASSES = {
    "vqa_accuracy": "VQAAccuracy",
    "infoseek": "InfoSeek",
    "evqa": "EVQA",
    "pseudo_recall": "PseudoRecall",
}


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    """The library, with caches of its own.

    It imports all of transformers' pipelines where it finds them, which takes seconds, and uses
    them for nothing that is tested here.
    """
    with pytest.MonkeyPatch.context() as patch:
        with pytest.MonkeyPatch.context() as without:
            without.setitem(sys.modules, "transformers", None)
            library = importlib.import_module("evaluate")
        # Python must not find the modules that were loaded before, here or in the user's folder,
        # which transformers adds to the path too.
        modules = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(library.config, "HF_MODULES_CACHE", modules)
        patch.setattr(sys, "path", [modules, *sys.path])
        for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
            patch.delitem(sys.modules, name)
        yield library
        for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def compute(evaluate, tmp_path_factory):
    """Gives a metric's result: as users load it, and as the class in its file."""

    def call(name, rows, **options):
        cache = str(tmp_path_factory.mktemp("cache"))
        loaded = evaluate.load(hub.path(name), cache_dir=cache)
        for prediction, reference in rows:
            loaded.add(prediction=prediction, reference=reference)
        found = loaded.compute(**options)
        own = metric(name, cache).compute(
            predictions=[prediction for prediction, _ in rows],
            references=[reference for _, reference in rows],
            **options,
        )
        assert own == found
        return found

    return call


def metric(name, cache):
    module = importlib.import_module(f"ravqa.metrics.hub.{name}.{name}")
    return getattr(module, CLASSES[name])(cache_dir=cache)


def test_vqa_accuracy_is_the_official_one(compute):
    vqa = json.loads((DATA / "vqa_accuracy.json").read_text(encoding="utf-8"))
    rows = [(case["prediction"], case["answers"]) for case in vqa[0]["cases"]]
    assert compute("vqa_accuracy", rows) == {"vqa_accuracy": vqa[0]["overall"]}
    rows = [("Pizza", ["pizza"] * 10), ("x", ["y"] * 10), ("z", ["y"] * 10)]
    assert compute("vqa_accuracy", rows) == {"vqa_accuracy": 0}
    assert compute("vqa_accuracy", rows, normalization="always") == {"vqa_accuracy": 33.33}


def test_infoseek_is_the_official_result(compute):
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
    found = compute("infoseek", rows)
    assert found == infoseek["result"]
    assert found == infoseek_scores(
        infoseek["predictions"], infoseek["references"], infoseek["question_types"]
    )
    one = [row for row in rows if row[1]["data_split"].endswith("unseen_entity")]
    found = compute("infoseek", one)
    assert found["final_score"] is None
    assert found["unseen_entity_score"] == infoseek["result"]["unseen_entity_score"]


def test_evqa_names_its_judge(compute):
    def reference(kind, *answers):
        return {"answers": list(answers), "question": "q", "question_type": kind}

    rows = [
        ("the oak", reference("automatic", "Oak")),
        ("elm", reference("templated", "oak", "ash")),
        ("fir, oak", reference("multi_answer", "oak&&fir")),
    ]
    assert compute("evqa", rows) == {"evqa_score": 66.67, "judge": "none (exact match only)"}
    judge = ByTable({("ash", "elm"): 0.7})
    assert compute("evqa", rows, judge=judge) == {"evqa_score": 100, "judge": "table"}
    assert judge.asked[0] == [("q", "oak", "elm"), ("q", "ash", "elm")]


def test_pseudo_recall_names_its_rule(compute):
    rows = [(["no", "a party"], ["art"]), (["art", "no"], ["art"]), (["no"] * 20, ["x", "no"])]
    assert compute("pseudo_recall", rows, ks=[1, 2]) == {
        "rule": "flmr",
        "pseudo_recall@1": 66.67,
        "pseudo_recall@2": 100,
    }
    assert compute("pseudo_recall", rows[:2], ks=[2], rule="word") == {
        "rule": "word",
        "pseudo_recall@2": 50,
    }
    rows = [(["x"] * place + ["no"] * (20 - place), ["no"]) for place in (0, 4, 9, 19)]
    assert compute("pseudo_recall", rows) == {
        "rule": "flmr",
        "pseudo_recall@1": 25,
        "pseudo_recall@5": 50,
        "pseudo_recall@10": 75,
        "pseudo_recall@20": 100,
    }
    assert pseudo_recall_at_k(["no", "a party"], ["art"], [2]) == {2: 1}


@pytest.mark.parametrize("name", hub.NAMES)
def test_a_metric_tells_what_it_is_and_what_it_takes(evaluate, tmp_path, name):
    about = metric(name, str(tmp_path))
    expected = {
        "vqa_accuracy": (
            "VQA accuracy as the official code computes it (OK-VQA, VQAv2).",
            "predictions: answers; references: ten annotators' answers each.",
            "github.com/GT-Vision-Lab/VQA",
        ),
        "infoseek": (
            "InfoSeek score as the official toolkit computes it.",
            "predictions: answers; references: data_split, question_type, and answer_eval "
            "(accepted strings) or, for Numerical, range (low, high).",
            "github.com/edchengg/infoseek_eval",
        ),
        "evqa": (
            "E-VQA accuracy: exact match, else what a judge says.",
            "predictions: answers; references: answers (accepted ones), question and "
            "question_type.",
            "github.com/google-research/google-research",
        ),
        "pseudo_recall": (
            "Share of questions with an answer string in the first K passages.",
            "predictions: ranked passages, best first; references: answers.",
            "github.com/LinWeizheDragon/FLMR",
        ),
    }
    description, inputs, source = expected[name]
    assert about.description == description
    assert about.inputs_description == inputs
    assert source in about.citation
    assert set(about.features) == {"predictions", "references"}


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="vqa_accuracy, infoseek, evqa, pseudo_recall"):
        hub.path("bleu")
