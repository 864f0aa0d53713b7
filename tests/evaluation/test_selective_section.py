"""Knowing when not to answer: what becomes of questions, and confidences of samples."""

import json
import math

import numpy as np
import pytest
from hand_runs import ANSWERS, DRAFT, answered, ranking
from sklearn.metrics import brier_score_loss, roc_auc_score

from ravqa.evaluation.schema import SelectiveSection, parsed
from ravqa.evaluation.selective import (
    aurc_difference,
    confidence_scores,
    confidences,
    outcome,
    selective_section,
    standing,
    truthfulness,
)
from ravqa.metrics import refusals
from ravqa.metrics.statistics import selective

REFUSED = {"answer": "i don't know", "score": 0.0}
LOST = {"answer": None, "raw": None, "decision": None, "drafts": [], "error": "it failed"}


def by_id(*samples):
    return {s["question_id"]: s for s in samples}


def drafts(*rows, **changes):
    return [
        {**DRAFT, "text": t, "raw": t, "log_prob": p, "tokens": n, "score": s, "posterior": z}
        for t, p, n, s, z in rows
    ]


@pytest.mark.parametrize(
    ("sample", "found", "points"),
    [
        (answered(1), "answered_right", 1),
        (answered(1, 0.0, answer="bear"), "answered_wrong", -1),
        (answered(1, 0.0, answer=""), "answered_wrong", -1),  # empty by accident
        (answered(1, **REFUSED, ranks=[3]), "refused_answerable", 0),
        (answered(1, **REFUSED), "refused_rightly", 0),
        (answered(1, **REFUSED, answer_ranks=None, answers=[]), "refused_unknown", 0),
        (answered(1, 0.0, answer="no such thing", refused=True), "refused_rightly", 0),
        (answered(1, 0.0, answer="who can say", not_attempted=True), "refused_rightly", 0),
        (answered(1, 0.0, answer="ask", not_attempted=True, ranks=[2]), "refused_answerable", 0),
        (answered(1, 1.0, answer="unknown"), "answered_right", 1),
        (answered(1, 0.3, right=True), "answered_right", 1),
        (answered(1, 0.0, **LOST), "unanswered", 0),
    ],
)
def test_every_question_has_one_outcome(sample, found, points):
    assert outcome(sample, "flmr") == found
    assert truthfulness(found) == points


def test_what_words_and_the_judge_call_a_refusal_counts_once_and_the_rule_names_the_judge():
    samples = by_id(
        answered(1, **REFUSED, not_attempted=True),
        answered(2, **REFUSED, refused=True),
        answered(3, 0.0, answer="who can say", not_attempted=True),
        answered(4, 0.0, answer="bear"),
    )
    for labels, rule in ((3, refusals.RULE_WITH_JUDGE), (None, refusals.RULE)):
        told = {} if labels is None else {"judge_labels": labels}
        section = selective_section({**ANSWERS, "rule": told}, {"main": samples}, "flmr", seed=0)
        counted = {k: v for k, v in section["outcomes"]["main"].items() if v}
        assert counted == {"refused_rightly": 3, "answered_wrong": 1}
        assert section["scores"]["main"]["value"] == -25
        assert section["refusals"] == rule
    assert "or the judge calls it not attempted" in refusals.RULE_WITH_JUDGE


def test_what_is_answerable_depends_on_the_rule():
    sample = answered(1, **REFUSED, ranks=[1])
    assert outcome(sample, "flmr") == "refused_answerable"
    assert outcome(sample, "word") == "refused_rightly"


def one(**changes):
    """The confidences of a sample; a second one has others, so that they are not all equal."""
    other = {**ranking([], 1), "hits": [["p1", 9.0]], "log_prob": -9.0, "stages": None}
    other |= {"drafts": drafts(("a", -8.0, 1, None, None), ("b", -9.0, 1, None, None))}
    found = confidences(by_id(answered(1, **changes), answered(2, **other)))
    return {name: values[1] for name, values in found.items() if 1 in values}


def test_confidences_are_read_from_samples():
    assert one(log_prob=-0.5, drafts=drafts(("a", -0.5, 2, None, None))) == {
        "log_prob": -0.5,
        "token_log_prob": -0.25,
        "retrieval_score": 1.0,
    }
    # Several drafts: the second is the chosen one.
    rows = drafts(("b", -3.0, 3, -3.0, None), ("a", -2.0, 4, -1.0, None), ("A.", -1.0, 1, -9, None))
    found = one(drafts=rows)
    assert (found["token_log_prob"], found["agreement"]) == (-0.5, pytest.approx(2 / 3))
    # Without scores: the whole generation, not another one that it begins with.
    rows = drafts(("k", -3.0, 1, None, None), ("koala", -1.0, 2, None, None))
    assert one(drafts=rows, raw="koala", answer="koala")["token_log_prob"] == -0.5
    long = "koala " * 99
    rows = drafts(("koala", -1.0, 2, None, None))
    rows[0]["raw"] = long[:300]
    assert one(drafts=rows, raw=long)["token_log_prob"] == -0.5
    assert "token_log_prob" not in one(drafts=rows, raw=None, answer=None)


def test_a_rules_posteriors_are_confidences():
    both = [
        drafts(("a", -1.0, 1, math.log(0.6), p), ("b", -1.0, 1, math.log(0.2), q))
        for p, q in ((0.7, 0.3), (0.5, 0.5))
    ]
    both[1][1]["score"] = math.log(0.3)
    samples = by_id(*(answered(i, drafts=rows) for i, rows in enumerate(both)))
    found = confidences(samples)
    assert found["answer_share"] == {0: pytest.approx(0.75), 1: pytest.approx(2 / 3)}
    assert found["passage_posterior"] == {0: 0.7, 1: 0.5}
    entropy = 0.7 * math.log(0.7) + 0.3 * math.log(0.3)
    assert found["posterior_entropy"] == {0: pytest.approx(entropy), 1: pytest.approx(-math.log(2))}
    for sample in samples.values():  # a mixture is one answer, decoded from all passages
        sample |= {"joint": True, "log_prob": -3.0 + sample["question_id"]}
    found = confidences(samples)
    assert "answer_share" not in found
    assert "agreement" not in found
    assert found["token_log_prob"] == {0: -3.0, 1: -2.0}
    assert found["passage_posterior"] == {0: 0.7, 1: 0.5}


def test_scores_of_retrieval_and_of_rerankers_are_told_apart():
    stages = [{"stage": "retrieved", **ranking([], 2)}, {"stage": "blend", **ranking([], 1)}]
    stages[0]["hits"] = [["p9", 7.5], ["p1", 7.0]]
    samples = by_id(answered(1, stages=stages), answered(2, hits=[["p", 3.0]]), answered(3))
    found = confidences(samples)
    assert found["retrieval_score"] == {1: 7.5, 2: 3.0, 3: 1.0}
    assert "reranker_score" not in found  # the same for all that have it
    samples[2] |= {"stages": stages}
    assert confidences(samples)["reranker_score"] == {1: 1.0, 2: 3.0}


def test_the_readers_own_verdict_is_a_probability():
    samples = by_id(answered(1, self_check=0.75), answered(2, self_check=0.5), answered(3))
    assert confidences(samples) == {"self_check": {1: 0.75, 2: 0.5}}
    scores = confidence_scores(samples, seed=0)["self_check"]
    assert scores["Brier"]["value"] == pytest.approx(100 * (0.25**2 + 0.5**2 + 1) / 3, abs=1e-4)


def test_what_is_the_same_for_every_question_is_no_confidence():
    assert confidences(by_id(answered(1), answered(2))) == {}


def test_refusals_and_what_has_no_confidence_stand_last():
    samples = by_id(
        answered(1, log_prob=-1.0),
        answered(2, **REFUSED, log_prob=-0.1),
        answered(3),
        answered(4, 0.0, **LOST),
        answered(5, 1.0, answer="unknown", log_prob=-2.0),
    )
    found = standing(samples, confidences(samples)["log_prob"])
    assert found == [-1.0, -math.inf, -math.inf, -math.inf, -2.0]


def test_no_answer_has_no_confidence_whatever_was_retrieved():
    samples = by_id(answered(1, hits=[["p", 2.0]]), answered(2), answered(3, 0.0, **LOST))
    found = confidences(samples)["retrieval_score"]
    assert found == {1: 2.0, 2: 1.0}
    assert standing(samples, found) == [2.0, 1.0, -math.inf]


def test_the_difference_of_two_areas_is_paired_by_image():
    rng = np.random.default_rng(0)
    images = [i // 2 for i in range(60)]
    loss = rng.integers(0, 2, 60).astype(float).tolist()
    good = [-x + rng.normal(0, 0.5) for x in loss]
    bad = [-x + rng.normal(0, 2) for x in loss]
    found = aurc_difference((good, loss), (bad, loss), images, seed=1)
    areas = [100 * float(selective.aurc(c, loss)) for c in (good, bad)]
    assert found.value == pytest.approx(areas[0] - areas[1])
    drawn = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30), size=1000)[:, images]
    draws = [
        100 * (selective.aurc(good, loss, often) - selective.aurc(bad, loss, often))
        for often in drawn
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])))
    assert found.high < 0
    same = aurc_difference((good, loss), (good, loss), images, seed=1)
    assert (same.value, same.has_interval) == (0, False)


def graded(count=40):
    """Samples whose log-probabilities tell something; every fourth is right."""
    return by_id(
        *(
            answered(
                i,
                float(i % 4 == 0),
                log_prob=-0.021 * i - 0.5 * (i % 4 > 0),
                answer="a" if i % 4 == 0 else "b",
                hits=[["p1", float(i % 3)]],
            )
            for i in range(count)
        )
    )


def test_scores_of_a_confidence_are_those_of_the_statistics_and_of_scikit_learn():
    samples = graded()
    found = confidence_scores(samples, seed=0)
    assert list(found) == ["log_prob", "retrieval_score"]
    scores = found["log_prob"]
    values = [s["log_prob"] for s in samples.values()]
    right = [s["right"] for s in samples.values()]
    loss = [1 - s["score"] for s in samples.values()]
    assert scores["questions"] == 40
    assert scores["AUROC"]["value"] == pytest.approx(100 * roc_auc_score(right, values), abs=1e-4)
    assert scores["AURC"]["value"] == pytest.approx(
        100 * float(selective.aurc(values, loss)), abs=1e-4
    )
    chances = [math.exp(v) for v in values]
    assert scores["Brier"]["value"] == pytest.approx(
        100 * brier_score_loss(right, chances), abs=1e-4
    )
    assert scores["ECE"]["value"] == pytest.approx(
        100 * float(selective.calibration_error(chances, right)), abs=1e-4
    )
    assert list(scores["coverage_at_risk"]) == ["1", "5", "10", "20"]
    low, high = scores["AUROC"]["interval_95"]
    assert 50 < low < scores["AUROC"]["value"] < high <= 100
    assert scores["curve"][-1]["coverage"] == 100
    assert scores["curve"][-1]["risk"] == 75
    risks = [point["risk"] for point in scores["curve"]]
    order = sorted(range(40), key=lambda i: -values[i])
    assert risks == pytest.approx(
        [100 * sum(loss[i] for i in order[: 2 * n]) / (2 * n) for n in range(1, 21)], abs=1e-4
    )
    assert {"ECE", "Brier"} & found["retrieval_score"].keys() == set()  # it is no probability


def test_without_right_or_wrong_answers_there_is_no_auroc():
    samples = by_id(*(answered(i, log_prob=-1.0 * i) for i in range(12)))
    assert confidence_scores(samples, seed=0)["log_prob"]["AUROC"] is None


def test_the_section_counts_every_condition_and_scores_the_run_itself():
    main = by_id(
        answered(1, log_prob=-1.0),
        answered(2, 0.0, answer="bear", log_prob=-2.0),
        answered(3, **REFUSED, ranks=[4], read=[]),
        answered(4, **REFUSED, ranks=[1], read=[1]),
    )
    none = by_id(*(answered(i, **REFUSED, count=0) for i in (1, 2, 3, 4)))
    answers = {**ANSWERS, "right": "a score of 1"}
    section = selective_section(answers, {"main": main, "none": none}, "flmr", seed=0)
    assert section == parsed(SelectiveSection, json.dumps(section), "")
    nothing = dict.fromkeys(section["outcomes"]["main"], 0)
    assert section["outcomes"]["main"] == {
        **nothing,
        "answered_right": 1,
        "answered_wrong": 1,
        "refused_answerable": 2,
        "refused_read": 1,
    }
    assert section["outcomes"]["none"] == {**nothing, "refused_rightly": 4}
    assert section["scores"]["main"]["value"] == 0
    assert section["scores"]["none"] == {"value": 0, "interval_95": [None, None]}
    assert section["answerable"] == (
        "a retrieved passage contains a reference answer (PRRecall's rule flmr)"
    )
    assert list(section["confidences"]) == ["log_prob"]
    assert section["confidences"]["log_prob"]["questions"] == 2
