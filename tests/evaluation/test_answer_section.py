"""The section of answers in the results: scores, references, judges, tables of hits."""

from dataclasses import replace

import numpy as np
import pytest
from table_judge import ByTable

from ravqa.core.errors import DataError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.datasets.base import Dataset
from ravqa.evaluation.answers import answer_section, points, record_of, score_answers, score_raw
from ravqa.evaluation.sections import dataset_section
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.statistics.intervals import bootstrap, paired_test


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


# --- the whole section, key by key


def rounded(interval):
    if interval.low == interval.high:  # all images are alike
        return [None, None]
    return [round(interval.low, 4), round(interval.high, 4)]


PICTURES = [
    {"shown": 3, "cut": 1, "unread": []},
    {"shown": 0, "cut": 2, "unread": ["passage a: no", "passage b: no"]},
]


@pytest.fixture
def whole():
    """Four questions about three images, of two types and one without; a run and a control."""
    types = {1: "one", 2: "one", 3: "two", 4: None}
    dataset = Dataset(
        name="okvqa",
        label="d",
        split="test",
        questions=tuple(
            Question(i, "q", image_id=i // 2, answers=("cat",) * 10, question_type=kind)
            for i, kind in types.items()
        ),
        metric="vqa_accuracy",
        fingerprint="",
        question_types={"one": "Animals"},
        info={"version": "1.1"},
        sample=True,
    )
    run = {
        1: {"answer": "cat", "raw": "cat", "cut": 2, "neutralised": 1, "pictures": PICTURES[0]},
        2: {"answer": "cat", "raw": "a cat!", "neutralised": 3, "pictures": PICTURES[1]},
        3: {"answer": None, "raw": "cat", "error": "the reader has no idea"},
        4: {"answer": " ", "raw": "", "cut": 1},
    }
    none = {1: {"answer": "cat"}, 2: {"answer": "dog"}, 3: {"answer": "dog"}, 4: {"answer": "cat"}}
    return dataset, {"main": run, "none": none}


@pytest.mark.usefixtures("any_images")
@pytest.mark.parametrize("seed", [0, 4])
def test_every_key_of_the_section_of_answers(whole, seed):
    dataset, conditions = whole
    section = answer_section(dataset, conditions, seed=seed)
    images = {i: i // 2 for i in range(1, 5)}
    main = {1: 100.0, 2: 100.0, 3: 0.0, 4: 0.0}
    raw = {1: 100.0, 2: 0.0, 3: 100.0, 4: 0.0}  # the same ten answers are not cleaned up
    none = {1: 100.0, 2: 0.0, 3: 0.0, 4: 100.0}

    def means(scores):
        return {
            "score": sum(scores.values()) / len(scores),
            "interval_95": rounded(
                bootstrap(list(scores.values()), [images[q] for q in scores], seed=seed)
            ),
            "unjudged": [],
        }

    def group(scores, *ids):
        found = means({q: scores[q] for q in ids})
        return {
            "mean": found["score"],
            "questions": len(ids),
            "interval_95": found["interval_95"],
        }

    test = paired_test(main, none, images, seed=seed)
    assert section == {
        "metric": "vqa_accuracy",
        "label": "VQA accuracy",
        "right": "one of the references",
        "rule": {"normalization": "official"},
        "questions": 4,
        "conditions": {
            "main": {
                **means(main),
                "raw": means(raw),
                "cut": {"passages": 3, "questions": 2},
                "neutralised": {"tokens": 4, "questions": 2},
                "pictures": {
                    "shown": 3,
                    "questions": 1,
                    "cut": 3,
                    "unread": [{"question_id": 2, "reasons": ["passage a: no", "passage b: no"]}],
                },
                "unanswered": [{"question_id": 3, "reason": "the reader has no idea"}],
                "empty": 1,
                "no_choice": 0,
                "exact_match": {"1": 50},
                "hits": None,
                "groups": {"Animals": group(main, 1, 2), "two": group(main, 3)},
            },
            "none": {
                **means(none),
                "raw": None,
                "cut": {"passages": 0, "questions": 0},
                "neutralised": {"tokens": 0, "questions": 0},
                "pictures": None,
                "unanswered": [],
                "empty": 0,
                "no_choice": 0,
                "exact_match": {"1": 50},
                "hits": None,
                "groups": {"Animals": group(none, 1, 2), "two": group(none, 3)},
            },
        },
        "comparisons": {
            "main - none": {
                "difference": round(test.difference.mean, 4),
                "interval_95": rounded(test.difference),
                "p_value": round(test.p_value, 5),
                "wins": 1,
                "losses": 1,
                "ties": 2,
                "hit_success_ratio": 25,
                "free_success_ratio": 25,
            }
        },
    }


def test_scores_that_stand_are_taken_with_their_reasons(whole):
    dataset, conditions = whole
    known = {
        1: {"score": 1.0, "raw_score": 0.5},
        2: {"unjudged": "no verdict", "score": 0.0, "raw_score": 0.25},
        3: {"score": 0.25, "raw_unjudged": "no idea", "raw_score": 0.0},
        4: {"score": 0.0, "raw_score": 0.0},
    }
    run = {q: sample | known[q] for q, sample in conditions["main"].items()}
    found = answer_section(dataset, {"main": run}, seed=0, scored=True)["conditions"]["main"]
    assert (found["score"], found["raw"]["score"]) == (31.25, 18.75)
    assert found["unjudged"] == [{"question_id": 2, "reason": "no verdict"}]
    assert found["raw"]["unjudged"] == [{"question_id": 3, "reason": "no idea"}]


def test_the_dataset_in_the_results(whole):
    dataset, _ = whole
    assert dataset_section(dataset) == {
        "name": "okvqa",
        "label": "d",
        "sample": True,
        "split": "test",
        "questions": 4,
        "images": 3,
        "version": "1.1",
    }


def test_raw_generations_are_judged_too(dataset):
    samples = {i: {"answer": "x", "raw": "tree"} for i in range(3)}
    judge = ByTable({("elm", "tree"): 0.9})
    found = answer_section(dataset, {"main": samples}, seed=0, judge=judge)["conditions"]["main"]
    assert (found["score"], found["raw"]["score"]) == (0, 33.3333)
    assert points(Failure("no verdict")) == 0
    assert points(0.3) == 0.3
    with pytest.raises(ValueError, match="zip"):
        score_raw(dataset, dataset.questions, [AnswerRecord("a")], [1.0])


@pytest.mark.parametrize("seed", [0, 4])
def test_intervals_resample_images_by_the_seed_and_are_rounded_to_four_decimals(seed):
    rng = np.random.default_rng(1)
    ids = range(60)
    dataset = Dataset(
        name="okvqa",
        label="d",
        split="test",
        questions=tuple(Question(i, "q", image_id=i // 3, answers=("cat",) * 10) for i in ids),
        metric="vqa_accuracy",
        fingerprint="",
    )
    said = {kind: rng.choice(["cat", "dog"], 60).tolist() for kind in ("answer", "raw", "none")}
    right = {kind: [100.0 * (text == "cat") for text in texts] for kind, texts in said.items()}
    images = [i // 3 for i in ids]
    samples = {i: {"answer": said["answer"][i], "raw": said["raw"][i]} for i in ids}
    control = {i: {"answer": said["none"][i]} for i in ids}
    section = answer_section(dataset, {"main": samples, "none": control}, seed=seed)
    found = section["conditions"]["main"]
    assert found["interval_95"] == rounded(bootstrap(right["answer"], images, seed=seed))
    assert found["raw"]["interval_95"] == rounded(bootstrap(right["raw"], images, seed=seed))
    test = paired_test(
        dict(enumerate(right["answer"])),
        dict(enumerate(right["none"])),
        dict(enumerate(images)),
        seed=seed,
    )
    compared = section["comparisons"]["main - none"]
    assert compared["difference"] == round(test.difference.mean, 4)
    assert compared["interval_95"] == rounded(test.difference)
    assert compared["p_value"] == round(test.p_value, 5)
    assert (compared["wins"], compared["losses"]) == (test.wins, test.losses)


def test_a_rule_reads_the_answer_the_generation_and_the_sample():
    sample = {"answer": "cat", "raw": "a cat", "drafts": []}
    assert record_of(sample) == AnswerRecord("cat", "a cat", sample)
    assert record_of({"answer": None}) == AnswerRecord(None, None, {"answer": None})


def test_answers_that_are_none_of_the_choices_are_counted():
    asked = Question(1, "q", image_id=1, choices=("cat", "dog"), correct_choice=1)
    questions = tuple(replace(asked, question_id=i, image_id=i) for i in range(4))
    dataset = Dataset("d", "D", "val", questions, "multiple_choice", "")
    given = ["dog", "Dog", "cat", None]
    conditions = {"main": {i: sample(text) for i, text in enumerate(given)}}
    found = answer_section(dataset, conditions, seed=0)["conditions"]["main"]
    assert (found["score"], found["no_choice"]) == (25, 1)
    plain = Dataset("d", "D", "val", (Question(1, "q", answers=("a",)),), "exact_match", "")
    found = answer_section(plain, {"main": {1: sample("b")}}, seed=0)["conditions"]["main"]
    assert found["no_choice"] == 0
