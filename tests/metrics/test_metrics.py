"""Metrics against the official implementations' outputs (tests/data) and hand-computed cases."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ravqa.metrics import (
    diagnostics,
    exact_match_at_n,
    free_success_ratio,
    hit_success_ratio,
    hit_table,
    infoseek,
    infoseek_score,
    infoseek_scores,
    prrecall,
    pseudo_precision_at_k,
    pseudo_recall_at_k,
    vqa,
    vqa_accuracies,
    vqa_accuracy,
)
from ravqa.metrics.statistics import intervals

DATA = Path(__file__).parents[1] / "data"
VQA = json.loads((DATA / "vqa_accuracy.json").read_text(encoding="utf-8"))
INFOSEEK = json.loads((DATA / "infoseek.json").read_text(encoding="utf-8"))
OFFICIAL = (INFOSEEK["predictions"], INFOSEEK["references"], INFOSEEK["question_types"])


# VQA accuracy


@pytest.mark.parametrize("case_set", VQA, ids=lambda s: s["name"])
def test_vqa_accuracy_equals_the_official_code(case_set):
    predictions = [c["prediction"] for c in case_set["cases"]]
    answers = [c["answers"] for c in case_set["cases"]]
    before = copy.deepcopy(answers)
    scores = vqa_accuracies(predictions, answers)
    assert round(100 * sum(scores) / len(scores), 2) == case_set["overall"]
    assert [round(100 * s, 2) for s in scores] == [c["score"] for c in case_set["cases"]]
    assert answers == before  # the official code changes them
    assert [vqa_accuracy(p, a) for p, a in zip(predictions, answers, strict=True)] == scores


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
    assert vqa.normalise(text) == expected


def test_vqa_contraction_table_is_the_official_one():
    official = json.loads((DATA / "vqa_normalization_tables.json").read_text(encoding="utf-8"))
    assert vqa._contractions() == official["contractions"]
    assert official["number_words"] == vqa._NUMBER_WORDS


def test_vqa_identical_answers_are_not_normalised_unless_asked():
    ten = ["pizza"] * 10
    assert vqa_accuracy("Pizza", ten) == 0
    assert vqa_accuracy("Pizza", ten, normalization="always") == 1
    assert vqa_accuracies(["Pizza"], [ten], "always") == [1]
    assert vqa_accuracy("Pizza", ["pizza"] * 9 + ["pie"]) == 1


def test_vqa_annotators_are_left_out_by_position():
    # records without ids: the official code would leave all equal answers out together (50)
    assert vqa_accuracy("cat", ["cat"] * 5 + ["dog"] * 5) == 1
    assert vqa_accuracy("dog", ["cat"] * 8 + ["dog"] * 2) == pytest.approx(0.6)


def test_vqa_refuses_what_has_no_score():
    with pytest.raises(ValueError, match="at least one"):
        vqa_accuracy("a", [])
    with pytest.raises(ValueError, match="official or always"):
        vqa_accuracy("a", ["a"], "sometimes")
    with pytest.raises(ValueError, match="2 predictions for 1"):
        vqa_accuracies(["a", "b"], [["a"]])


@given(st.text(max_size=30), st.lists(st.text(max_size=10), min_size=1, max_size=10))
def test_vqa_accuracy_is_a_share_that_no_second_call_changes(prediction, answers):
    before = list(answers)
    first = vqa_accuracy(prediction, answers)
    assert 0 <= first <= 1
    assert answers == before
    assert vqa_accuracy(prediction, answers) == first
    assert vqa_accuracy(prediction, answers[::-1]) == first


# InfoSeek


def test_infoseek_equals_the_official_toolkit():
    before = copy.deepcopy(OFFICIAL)
    assert infoseek_scores(*OFFICIAL) == INFOSEEK["result"]
    assert infoseek_scores(*OFFICIAL, strict=False) == INFOSEEK["result"]
    assert before == OFFICIAL
    types = {t["data_id"]: t["question_type"] for t in INFOSEEK["question_types"]}
    by_id = {p["data_id"]: p["prediction"] for p in INFOSEEK["predictions"]}
    scores = [
        infoseek_score(by_id[r["data_id"]], r["answer_eval"], types[r["data_id"]])
        for r in INFOSEEK["references"]
    ]
    assert scores == INFOSEEK["per_question"]


def test_infoseek_missing_predictions_are_wrong_or_left_out():
    predictions, references, types = OFFICIAL
    right = dict(zip((r["data_id"] for r in references), INFOSEEK["per_question"], strict=True))
    kept = predictions[:1000]
    strict = infoseek_scores(kept, references, types)
    assert strict["missing"] == 500
    official = infoseek_scores(kept, references, types, strict=False)
    assert "missing" not in official
    for split in infoseek.SPLITS:
        ids = [r["data_id"] for r in references if r["data_split"].endswith(split)]
        found = [p["data_id"] for p in kept if p["data_id"] in ids]
        hits = sum(right[i] for i in found)
        assert strict[f"{split}_score"]["score"] == round(100 * hits / len(ids), 2)
        assert official[f"{split}_score"]["score"] == round(100 * hits / len(found), 2)


def test_infoseek_strict_refuses_what_official_passes_over():
    predictions, references, types = OFFICIAL
    unknown = [*predictions, {"data_id": "nowhere", "prediction": "x"}]
    twice = [*predictions, predictions[0]]
    with pytest.raises(ValueError, match="'nowhere' is unknown"):
        infoseek_scores(unknown, references, types)
    with pytest.raises(ValueError, match="predicted twice"):
        infoseek_scores(twice, references, types)
    assert infoseek_scores(unknown, references, types, strict=False) == INFOSEEK["result"]
    with pytest.raises(ValueError, match="1 references have no question type"):
        infoseek_scores(predictions, references, types[1:])


def test_infoseek_without_questions_of_a_split_has_no_score():
    predictions, references, types = OFFICIAL
    seen = [r for r in references if r["data_split"].endswith("unseen_question")]
    ids = {r["data_id"] for r in seen}
    kept = [p for p in predictions if p["data_id"] in ids]
    strict = infoseek_scores(kept, seen, types)
    assert strict["final_score"] is None
    assert strict["unseen_entity_score"] == dict.fromkeys(strict["unseen_entity_score"])
    assert strict["unseen_question_score"] == INFOSEEK["result"]["unseen_question_score"]
    official = infoseek_scores(kept, seen, types, strict=False)
    assert official["final_score"] == 0
    assert set(official["unseen_entity_score"].values()) == {0}


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
        ("-7", [-7.0]),
        ("m\u00b2-5", [5.0]),  # a superscript digit before the hyphen counts as a digit there
        ("-.5.3", [-0.5]),  # the official parser ends with an error here
    ],
)
def test_infoseek_number_parser_quirks(text, numbers):
    assert infoseek.parse_numbers(text) == numbers


@given(st.text(alphabet="0123456789.,-+eE \u00b2\u0663x", max_size=20))
def test_infoseek_number_parser_never_fails(text):
    numbers = infoseek.parse_numbers(text)
    assert len(numbers) == 1 or numbers[0] <= numbers[1]


@pytest.mark.parametrize(
    ("prediction", "right"),
    [("9", 1), ("8.9", 0), ("9-11", 1), ("10-14", 0), ("8-11", 1), ("0-100", 0), ("none", 0)],
)
def test_infoseek_ranges_by_hand(prediction, right):
    assert infoseek_score(prediction, [{"wikidata": 10, "range": [9, 11]}], "Numerical") == right


def test_infoseek_published_harmonic_means():
    # README of edchengg/infoseek_eval: BLIP-2 InstructFlanT5-XXL and FlanT5-XXL
    assert infoseek.harmonic_mean([8.89, 7.38]) == pytest.approx(8.06, abs=0.01)
    assert infoseek.harmonic_mean([12.74, 12.28]) == pytest.approx(12.51, abs=0.01)
    assert infoseek.harmonic_mean([0.0, 50.0]) == 0.0


# PRRecall


def test_prrecall_rules_by_hand():
    texts = ["Nothing here.", "A big PARTY.", "Paris is a\ncity of art"]
    assert prrecall.answer_ranks(texts, ["Art "], "flmr") == [2, 3]  # stripped; no word boundary
    assert prrecall.answer_ranks(texts, ["Art "], "ravqa") == []  # "art " with its space
    assert prrecall.answer_ranks(texts, ["Art "], "word") == [3]
    assert prrecall.answer_ranks(texts, ["a city"], "word") == [3]  # across a line break
    assert prrecall.answer_ranks(texts, ["a city"], "flmr") == []
    assert prrecall.answer_ranks(["the U.S. army"], ["u.s."], "word") == [1]
    for rule in prrecall.RULES:
        assert prrecall.answer_ranks(texts, ["paris", "rome"], rule) == [3]
        assert prrecall.answer_ranks(texts, ["", "  "], rule) == []  # blanks match nothing
        assert prrecall.answer_ranks([], ["x"], rule) == []
    assert prrecall.first_hit(["art"], texts) == 2
    assert prrecall.first_hit(["rome"], texts) is None


def test_prrecall_and_precision_of_one_question():
    texts = ["no", "art", "no", "party"]
    assert pseudo_recall_at_k(texts, ["art"], [1, 2, 5]) == {1: 0, 2: 1, 5: 1}
    assert pseudo_precision_at_k(texts, ["art"], [1, 2, 5]) == {1: 0, 2: 0.5, 5: 0.4}
    assert pseudo_precision_at_k(texts, ["art"], [5], rule="word") == {5: 0.2}
    assert pseudo_recall_at_k([], ["art"], [5]) == {5: 0}
    with pytest.raises(ValueError, match="ravqa, flmr, word"):
        pseudo_recall_at_k(texts, ["art"], [1], rule="exact")
    with pytest.raises(ValueError, match="at least 1"):
        pseudo_recall_at_k(texts, ["art"], [0])


WORDS = st.text(alphabet="ab c.", max_size=8)


@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=4))
def test_prrecall_equals_its_definition_and_rules_are_nested(texts, answers):
    found = {rule: set(prrecall.answer_ranks(texts, answers, rule)) for rule in prrecall.RULES}
    kept = [a for a in answers if a.strip()]
    expected = {
        i for i, text in enumerate(texts, 1) if any(a.strip().lower() in text for a in kept)
    }
    assert found["flmr"] == expected
    assert found["ravqa"] <= found["flmr"]
    values = pseudo_recall_at_k(texts, answers, range(1, 8))
    assert list(values.values()) == sorted(values.values())


# RA-VQA's diagnostics


def test_exact_match_takes_the_best_candidate_first():
    candidates = ["cat", "The Dog", "dog", "cow"]
    scores = [-5.0, -0.1, -0.2, -3.0]  # log-probabilities: the released code takes "cat" first
    assert exact_match_at_n(candidates, scores, ["dog"]) == dict.fromkeys(range(1, 6), 1)
    # "dog" twice is one candidate: cow is the second, cat the third
    assert exact_match_at_n(candidates, scores, ["Cat!"], [1, 2, 3]) == {1: 0, 2: 0, 3: 1}
    assert exact_match_at_n(["a b", "c"], [0.0, 0.0], ["c"], [1, 2]) == {1: 0, 2: 1}  # a tie
    with pytest.raises(ValueError, match="one score per candidate"):
        exact_match_at_n(["a"], [], ["a"])
    with pytest.raises(ValueError, match="at least 1"):
        exact_match_at_n(["a"], [0.0], ["a"], [0])


@given(st.sampled_from(["one", "1", "two", "x-y", "x y", "z"]), st.data())
def test_exact_match_is_never_below_vqa_accuracy(prediction, data):
    answers = data.draw(st.lists(st.sampled_from(["1", "2", "x y", "z"]), min_size=1, max_size=10))
    em = exact_match_at_n([prediction], [0.0], answers, [1])[1]
    assert em >= vqa_accuracy(prediction, answers, "always")


def test_success_ratios_by_hand():
    with_retrieval = {1: True, 2: True, 3: False, 4: True}
    without = {1: False, 2: True, 3: True, 4: False}
    assert hit_success_ratio(with_retrieval, without) == 0.5
    assert free_success_ratio(with_retrieval, without) == 0.25
    with pytest.raises(ValueError, match="same questions"):
        hit_success_ratio(with_retrieval, {1: True})
    with pytest.raises(ValueError, match="same questions"):
        free_success_ratio({}, {})


def test_hit_table_by_hand():
    pairs = [(True, True), (True, True), (True, False), (False, True)]
    assert hit_table(pairs) == {
        "successful_hit": 0.5,
        "successful_no_hit": 0.25,
        "failed_hit": 0.25,
        "failed_no_hit": 0,
    }
    with pytest.raises(ValueError, match="at least one"):
        hit_table([])


def test_a_document_is_searched_in_the_form_of_the_answer():
    assert diagnostics.is_in_document("golden retriever", "A Golden-Retriever barks.")
    assert diagnostics.is_in_document("2", "It has two doors")
    assert not diagnostics.is_in_document("", "anything")
    assert not diagnostics.is_in_document("The", "the")  # nothing of it is left
    assert vqa.is_answer("The Dog", ["cat", "dog"])


# intervals


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


def test_bootstrap_is_scipys_over_clusters():
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 80, size=200).tolist()
    scores = rng.choice([0.0, 30.0, 60.0, 90.0, 100.0], size=200).tolist()
    ours = intervals.bootstrap(scores, clusters)
    by_cluster = {c: [s for s, d in zip(scores, clusters, strict=True) if d == c] for c in clusters}
    sums = np.array([sum(v) for v in by_cluster.values()])
    counts = np.array([len(v) for v in by_cluster.values()])
    theirs = scipy.stats.bootstrap(
        (sums, counts),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=rng,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)


def test_paired_test_is_scipys_permutation_test():
    rng = np.random.default_rng(5)
    first = rng.choice([0.0, 30.0, 60.0, 90.0, 100.0], size=60)
    second = np.where(rng.random(60) < 0.7, first, rng.permutation(first))
    theirs = scipy.stats.permutation_test(
        (first - second,),
        lambda d, axis: d.sum(axis),
        permutation_type="samples",
        n_resamples=10_000,
        rng=rng,
    )
    ours = intervals.paired_test(dict(enumerate(first)), dict(enumerate(second)), resamples=10_000)
    assert 0.05 < theirs.pvalue < 0.95
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.02)


def test_paired_test_against_exact_enumeration():
    first = {i: float(i < 6) for i in range(8)}
    second = {i: float(i == 7) for i in range(8)}
    result = intervals.paired_test(first, second, resamples=10_000)
    # 7 non-zero differences, 6 up and 1 down: P(|sum| >= 5) = 2 * (1 + 7) / 2**7
    assert result.p_value == pytest.approx(0.125, abs=0.01)
    assert (result.wins, result.losses, result.ties) == (6, 1, 1)
    assert result.difference.mean == pytest.approx(5 / 8)
    assert intervals.paired_test(first, first).p_value == 1.0
    with pytest.raises(ValueError, match="same questions"):
        intervals.paired_test(first, {1: 0.0})


def test_paired_test_flips_clusters_as_a_whole():
    first = dict.fromkeys(range(40), 1.0)
    second = dict.fromkeys(range(40), 0.0)
    images = {i: i // 20 for i in first}  # two images: at best P = 2 / 2**2
    assert intervals.paired_test(first, second, images).p_value == pytest.approx(0.5, abs=0.02)
    assert intervals.paired_test(first, second).p_value < 0.001


def test_interval_of_as_many_questions_as_infoseek_has():
    scores = [float(i % 3 == 0) for i in range(73_620)]
    interval = intervals.bootstrap(scores)
    assert interval.high - interval.low == pytest.approx(
        2 * 1.96 * math.sqrt(2 / 9 / 73_620), rel=0.05
    )
    assert interval == intervals.bootstrap(scores)
