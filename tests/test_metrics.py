"""Metrics against the official implementations' outputs (tests/data) and hand-computed cases."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.metrics import infoseek, intervals, prrecall, vqa_accuracy

DATA = Path(__file__).parent / "data"
VQA = json.loads((DATA / "vqa_accuracy.json").read_text(encoding="utf-8"))
INFOSEEK = json.loads((DATA / "infoseek.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case_set", VQA, ids=lambda s: s["name"])
def test_vqa_accuracy_equals_the_official_code(case_set):
    cases = dict(enumerate(case_set["cases"]))
    overall, per_question = vqa_accuracy.score_dataset(
        {i: c["prediction"] for i, c in cases.items()},
        {i: c["answers"] for i, c in cases.items()},
    )
    assert overall == case_set["overall"]
    assert per_question == {i: c["score"] for i, c in cases.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Golden-Retriever", "golden retriever"),
        ("1,000 dogs", "1000 dogs"),
        ("1,000-dogs", "1000dogs"),
        ("two - door", "2 door"),
        ("T.V.", "tv"),
        ("3.5", "3.5"),
        ("No. 5", "no 5"),
        ("dont", "don't"),
        ("none", "0"),
        ("an apple / pear", "apple pear"),
        ("ice-cream,cone", "ice cream cone"),
        ("10:30", "10:30"),
        ("xxx" + "." * 40, "xxx" + "." * 8),
    ],
)
def test_vqa_normaliser_vectors(text, expected):
    assert vqa_accuracy.normalise(text) == expected


def test_vqa_contraction_table_is_the_official_one():
    official = json.loads((DATA / "vqa_normalization_tables.json").read_text(encoding="utf-8"))
    assert vqa_accuracy._contractions() == official["contractions"]
    assert official["number_words"] == vqa_accuracy._NUMBER_WORDS


def test_vqa_identical_answers_are_not_normalised_unless_asked():
    ten = ["pizza"] * 10
    assert vqa_accuracy.score("Pizza", ten) == 0
    assert vqa_accuracy.score("Pizza", ten, mode="always_normalise") == 1
    assert vqa_accuracy.score("Pizza", ["pizza"] * 9 + ["pie"]) == 1


def test_vqa_refuses_partial_coverage_and_empty_references():
    with pytest.raises(ValueError, match="1 are missing"):
        vqa_accuracy.score_dataset({}, {1: ["a"]})
    with pytest.raises(ValueError, match="at least one"):
        vqa_accuracy.score("a", [])


@given(st.text(max_size=30), st.lists(st.text(max_size=10), min_size=1, max_size=10))
def test_vqa_accuracy_is_a_share_and_leaves_inputs_alone(prediction, answers):
    before = list(answers)
    first = vqa_accuracy.score(prediction, answers)
    assert 0 <= first <= 1
    assert answers == before
    assert vqa_accuracy.score(prediction, answers) == first


def test_infoseek_equals_the_official_toolkit():
    types = {t["data_id"]: t["question_type"] for t in INFOSEEK["question_types"]}
    references = {
        r["data_id"]: {**r, "question_type": types[r["data_id"]]} for r in INFOSEEK["references"]
    }
    predictions = {p["data_id"]: p["prediction"] for p in INFOSEEK["predictions"]}
    result = infoseek.score_dataset(predictions, references)
    assert list(result.per_question.values()) == INFOSEEK["per_question"]
    assert result.final == INFOSEEK["result"]["final_score"]
    for split in infoseek.SPLITS:
        expected = INFOSEEK["result"][f"{split}_score"]
        assert result.splits[split] == expected


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (".5", [5.0]),
        ("1.2.3", [1.2, 3.0]),
        ("12.5%", [12.5]),
        ("20-10", [20.0]),
        ("about 5 to 3", [5.0]),
        ("1990-2000", [1990.0, 2000.0]),
        ("no idea", [0.0, 0.0]),
        ("1,234 m", [1234.0]),
    ],
)
def test_infoseek_number_parser_quirks(text, numbers):
    assert infoseek.parse_numbers(text) == numbers


def test_infoseek_published_harmonic_means():
    # README of edchengg/infoseek_eval: BLIP-2 InstructFlanT5-XXL and FlanT5-XXL
    assert infoseek.harmonic_mean([8.89, 7.38]) == pytest.approx(8.06, abs=0.01)
    assert infoseek.harmonic_mean([12.74, 12.28]) == pytest.approx(12.51, abs=0.01)
    assert infoseek.harmonic_mean([0.0, 50.0]) == 0.0


def test_infoseek_refuses_partial_coverage():
    reference = {
        "answer_eval": ["x"],
        "question_type": "String",
        "data_split": "val_unseen_entity",
    }
    with pytest.raises(ValueError, match="1 are missing"):
        infoseek.score_dataset({}, {"a": reference})


def test_prrecall_by_hand():
    texts = ["Nothing here.", "A big PARTY.", "Paris is a city."]
    assert prrecall.first_hit(["Art "], texts) == 2  # a substring, no word boundary
    assert prrecall.first_hit(["paris"], texts) == 3
    assert prrecall.first_hit(["rome"], texts) is None
    assert prrecall.first_hit(["", "  "], texts) is None  # blank answers match nothing
    assert prrecall.first_hit(["x"], []) is None
    assert prrecall.score_dataset({1: 1, 2: 6, 3: None, 4: 5}, (1, 5, 10)) == {
        1: 25,
        5: 50,
        10: 75,
    }
    with pytest.raises(ValueError, match="at least one question"):
        prrecall.score_dataset({})


@given(st.lists(st.one_of(st.none(), st.integers(1, 30)), min_size=1, max_size=40))
def test_prrecall_never_falls_with_k(ranks):
    values = prrecall.score_dataset(dict(enumerate(ranks)), range(1, 31))
    assert list(values.values()) == sorted(values.values())


def test_bootstrap_interval_matches_the_normal_approximation():
    scores = [1.0] * 300 + [0.0] * 700
    interval = intervals.bootstrap(scores)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert interval.mean == pytest.approx(0.3)
    assert interval.low == pytest.approx(0.3 - half, abs=0.004)
    assert interval.high == pytest.approx(0.3 + half, abs=0.004)


def test_clusters_widen_the_interval():
    scores = [float(i // 10 % 2) for i in range(400)]  # ten equal questions an image
    plain = intervals.bootstrap(scores)
    clustered = intervals.bootstrap(scores, [i // 10 for i in range(400)])
    ratio = (clustered.high - clustered.low) / (plain.high - plain.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.1)


def test_paired_test_against_exact_enumeration():
    first = {i: float(i < 6) for i in range(8)}
    second = {i: float(i == 7) for i in range(8)}
    result = intervals.paired_test(first, second)
    # 7 non-zero differences, 6 up and 1 down: P(|sum| >= 5) = 2 * (1 + 7) / 2**7
    assert result.p_value == pytest.approx(0.125, abs=0.01)
    assert (result.wins, result.losses, result.ties) == (6, 1, 1)
    assert result.difference.mean == pytest.approx(5 / 8)
    assert intervals.paired_test(first, first).p_value == 1.0
    with pytest.raises(ValueError, match="same questions"):
        intervals.paired_test(first, {1: 0.0})
