"""The section of answers in the results: scores, references, judges, tables of hits."""

from dataclasses import replace

import pytest
from table_judge import ByTable

from ravqa.core.errors import DataError
from ravqa.core.records import Question
from ravqa.datasets.base import Dataset
from ravqa.evaluation.answers import answer_section, score_answers
from ravqa.metrics.base import AnswerRecord


def sample(answer, *drafts):
    return {
        "answer": answer,
        "drafts": [
            {"text": text, "score": score, "passage_ids": ["p"], "in_passages": inside}
            for text, score, inside in drafts
        ],
    }


def test_results_hold_exact_match_success_ratios_and_hit_tables():
    answers = {1: ["cat"] * 10, 2: ["dog"] * 10, 3: ["cow"] * 10, 4: ["hen"] * 10}
    dataset = Dataset(
        name="okvqa",
        label="d",
        split="test",
        questions=tuple(Question(i, "q", image_id=i, answers=tuple(a)) for i, a in answers.items()),
        metric="vqa_accuracy",
        fingerprint="",
    )
    conditions = {
        "main": {
            1: sample("cat", ("cat", -1.0, True), ("dog", -2.0, False)),
            2: sample("The dog", ("The dog", -1.0, False), ("dog", -2.0, True)),
            3: sample("hen", ("cow", -3.0, True), ("hen", -2.0, True)),
            4: sample("cow", ("cow", -1.0, False), ("pig", -2.0, False)),
        },
        "none": {
            1: sample("dog"),
            2: sample("dog"),
            3: sample("cow"),
            4: {"answer": None, "drafts": []},
        },
    }
    section = answer_section(dataset, conditions, seed=0)
    main = section["conditions"]["main"]
    assert main["score"] == 25  # "The dog" is not cleaned up: ten equal answers
    assert main["exact_match"] == {"1": 50, "2": 75, "3": 75, "4": 75, "5": 75}
    assert main["hits"]["documents"] == {
        "successful_hit": 37.5,
        "successful_no_hit": 12.5,
        "failed_hit": 12.5,
        "failed_no_hit": 37.5,
    }
    assert main["hits"]["selected"] == {
        "successful_hit": 25,
        "successful_no_hit": 25,
        "failed_hit": 25,
        "failed_no_hit": 25,
    }
    for one in conditions["main"].values():  # no answer belongs to a single passage
        one["joint"] = True
    assert answer_section(dataset, conditions, seed=0)["conditions"]["main"]["hits"] is None
    none = section["conditions"]["none"]
    assert none["score"] == 50
    assert none["exact_match"] == {"1": 50}
    assert none["hits"] is None
    test = section["comparisons"]["main - none"]
    assert (test["hit_success_ratio"], test["free_success_ratio"]) == (25, 25)
    cleaned = replace(dataset, metric_options={"normalization": "always"})
    always = answer_section(cleaned, conditions, seed=0)
    assert (always["rule"], section["rule"]) == (
        {"normalization": "always"},
        {"normalization": "official"},
    )
    assert always["conditions"]["main"]["score"] == 50


@pytest.fixture
def dataset():
    rows = [("oak", "templated"), ("elm", "automatic"), ("fir&&ash", "multi_answer")]
    questions = tuple(
        Question(i, f"q{i}", image_id=i, answers=(answer,), question_type=kind)
        for i, (answer, kind) in enumerate(rows)
    )
    return Dataset(
        name="evqa",
        label="E-VQA",
        split="test",
        questions=questions,
        metric="evqa_score",
        fingerprint="",
    )


def test_results_name_the_judge_and_both_columns(dataset):
    samples = {i: {"answer": a} for i, a in enumerate(["The oak", "tree", "fir, ash"])}
    judge = ByTable({("elm", "tree"): 0.9})
    with_judge = answer_section(dataset, {"main": samples}, seed=0, judge=judge)
    assert with_judge["rule"] == {"judge": "table", "judge_fingerprint": "0" * 32}
    main = with_judge["conditions"]["main"]
    assert (main["score"], main["single_hop"], main["exact_match"]["1"]) == (100, 100, 66.6667)
    without = answer_section(dataset, {"main": samples}, seed=0)
    assert without["rule"]["judge"] == "none (exact match only)"
    main = without["conditions"]["main"]
    assert (main["score"], main["single_hop"]) == (66.6667, 50)
    records = [AnswerRecord(answer) for answer in ("oak", None, None)]
    assert score_answers(dataset, dataset.questions, records) == [1, 0, 0]


def test_a_reference_that_cannot_be_matched_is_the_datas_error(dataset):
    broken = [replace(dataset.questions[0], answers=("the",))]
    with pytest.raises(DataError, match="E-VQA: the reference 'the' is empty after the clean-up"):
        score_answers(dataset, broken, [AnswerRecord("oak")])
