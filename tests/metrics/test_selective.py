"""Selective answering, against direct computation and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, precision_recall_curve, roc_auc_score

from ravqa.metrics.statistics import selective

SHARES = st.sampled_from([0.0, 0.1, 1 / 15, 0.2, 0.3, 0.5, 0.6, 0.9, 1.0])
RANKED = st.lists(st.tuples(SHARES | st.just(-math.inf), SHARES), min_size=1, max_size=12)
JUDGED = st.lists(st.tuples(SHARES, st.booleans()), min_size=1, max_size=12)
WEIGHED = st.lists(st.tuples(SHARES, st.booleans(), st.integers(0, 3)), min_size=2, max_size=12)
quick = settings(max_examples=40, deadline=None)


def answered(cases, threshold):
    """Coverage and risk of answering where the confidence reaches a threshold, one by one."""
    taken = [loss for confidence, loss in cases if confidence >= threshold]
    return len(taken) / len(cases), sum(taken) / len(taken)


@quick
@given(RANKED)
def test_the_curve_its_area_and_its_thresholds_are_those_counted_directly(cases):
    confidence, losses = zip(*cases, strict=True)
    curve = selective.risk_coverage(confidence, losses)
    thresholds, coverage, risk = curve
    assert thresholds.tolist() == sorted(set(confidence), reverse=True)
    points = [answered(cases, threshold) for threshold in thresholds]
    assert list(zip(coverage, risk, strict=True)) == [pytest.approx(point) for point in points]
    area = np.mean([answered(cases, own)[1] for own in confidence])
    assert selective.aurc(confidence, losses) == pytest.approx(area)
    for wanted in (0.0, 0.25, 1.0):
        rows = zip(thresholds, points, strict=True)
        kept = [(t, c) for t, (c, r) in rows if r <= wanted + 1e-9 and t > -math.inf]
        threshold, share = kept[-1] if kept else (None, 0)
        assert curve.threshold_at(wanted) == threshold
        assert selective.coverage_at_risk(confidence, losses, wanted) == pytest.approx(share)
        least = [r for c, r in points if c >= max(wanted, 0.01) - 1e-9]
        assert curve.risk_at([max(wanted, 0.01)]).tolist() == [pytest.approx(least[0])]


@quick
@given(RANKED, st.randoms())
def test_no_value_depends_on_the_order_of_the_questions(cases, random):
    other = random.sample(cases, len(cases))
    first, second = (list(zip(*rows, strict=True)) for rows in (cases, other))
    assert selective.aurc(*first) == pytest.approx(selective.aurc(*second))
    assert selective.auroc(first[0], np.array(first[1]) > 0.4) == pytest.approx(
        selective.auroc(second[0], np.array(second[1]) > 0.4), nan_ok=True
    )


@quick
@given(JUDGED)
def test_the_risk_is_one_minus_the_precision_of_scikit_learn(cases):
    confidence, right = (np.array(v) for v in zip(*cases, (0.3, True), strict=True))
    thresholds, _, risk = selective.risk_coverage(confidence, 1 - right)
    precision, _, known = precision_recall_curve(right, confidence, drop_intermediate=False)
    assert thresholds[::-1] == pytest.approx(known)
    assert 1 - risk[::-1] == pytest.approx(precision[:-1])


@quick
@given(WEIGHED)
def test_auroc_and_brier_score_are_those_of_scikit_learn_with_and_without_weights(cases):
    values, right, weights = (np.array(column) for column in zip(*cases, strict=True))
    if len(set(right)) == 2:
        assert selective.auroc(values, right) == pytest.approx(roc_auc_score(right, values))
    if len(set(right[weights > 0])) == 2:
        truth = roc_auc_score(right, values, sample_weight=weights)
        assert selective.auroc(values, right, weights) == pytest.approx(truth)
    assert selective.brier(values, right) == pytest.approx(
        brier_score_loss(right, values, pos_label=1)
    )
    if weights.any():
        truth = brier_score_loss(right, values, sample_weight=weights, pos_label=1)
        assert selective.brier(values, right, weights) == pytest.approx(truth)


@quick
@given(JUDGED)
@example([(1 / 15, True), (0.07, False)])  # on both sides of an edge
def test_the_calibration_error_weighs_the_gaps_of_scikit_learns_bins(cases):
    values, right = (np.array(column) for column in zip(*cases, strict=True))
    share, mean = calibration_curve(right, values, n_bins=15)
    edges = np.linspace(0, 1, 16)
    counts = np.bincount(np.searchsorted(edges[1:-1], values), minlength=15)
    error = np.sum(counts[counts > 0] * np.abs(share - mean)) / len(values)
    assert selective.calibration_error(values, right) == pytest.approx(error)


@quick
@given(WEIGHED)
def test_a_weight_is_how_often_a_question_counts(cases):
    cases = [*cases, (0.5, True, 1), (0.2, False, 1)]
    values, right, weights = (np.array(column) for column in zip(*cases, strict=True))
    repeated = np.repeat(values, weights), 1.0 - np.repeat(right, weights)
    for one in (
        selective.aurc,
        lambda *x: selective.coverage_at_risk(*x[:2], 0.3, *x[2:]),
        lambda c, loss, *w: selective.auroc(c, 1 - loss, *w),
        lambda c, loss, *w: selective.calibration_error(c, 1 - loss, *w),
        lambda *x: selective.risk_coverage(*x).risk_at([0.1, 0.7]),
    ):
        rows = np.stack([weights, np.ones(len(weights))])
        found = one(values, 1.0 - right, rows)
        assert found[0] == pytest.approx(one(*repeated))
        assert found[1] == pytest.approx(one(values, 1.0 - right))


def test_what_a_system_does_not_answer_is_never_covered_by_a_threshold():
    confidence, losses = [2.0, 1.0, -math.inf, -math.inf], [0.0, 0.0, 1.0, 1.0]
    assert selective.coverage_at_risk(confidence, losses, 1.0) == 0.5
    assert selective.risk_coverage(confidence, losses).threshold_at(1.0) == 1.0
    assert selective.aurc(confidence, losses) == 0.25
    assert selective.auroc(confidence, [1, 0, 1, 0]) == 0.625


def test_a_constant_confidence_tells_nothing():
    assert selective.aurc([3.0] * 4, [0, 1, 1, 0]) == 0.5
    assert selective.auroc([3.0] * 4, [0, 1, 1, 0]) == 0.5
    assert np.isnan(selective.auroc([1.0, 2.0], [True, True]))


@pytest.mark.parametrize(
    ("confidence", "losses", "message"),
    [
        ([], [], "one number per question is expected, and one question at least"),
        ([1.0], [0.0, 1.0], "one number per question is expected, and one question at least"),
        ([math.nan], [0.0], "a confidence is not a number"),
    ],
)
def test_odd_input_is_refused(confidence, losses, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        selective.aurc(confidence, losses)


def test_the_interval_resamples_whole_images_with_the_seed():
    rng = np.random.default_rng(0)
    losses = np.repeat(rng.integers(0, 2, 30), 4).astype(float)
    confidence = np.repeat(rng.normal(size=30), 4)
    images = [i // 4 for i in range(120)]
    area = lambda w: selective.aurc(confidence, losses, w)  # noqa: E731
    found = selective.bootstrap_interval(area, images, seed=3)
    # By hand: the same images drawn, their questions repeated.
    drawn = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=1000)
    draws = [
        selective.aurc(np.repeat(confidence, often), np.repeat(losses, often))
        for often in drawn[:, images]
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(float(selective.aurc(confidence, losses)))
    alone = selective.bootstrap_interval(area, list(range(120)), seed=3)
    assert alone.high - alone.low < found.high - found.low


def test_resamples_without_a_value_are_left_out():
    right = np.array([True, False])
    value, low, high = selective.bootstrap(
        lambda w: selective.auroc([1.0, 0.0], right, w), ["a", "b"], resamples=50
    )
    assert (value, low, high) == (1, 1, 1)
    value, low, high = selective.bootstrap(
        lambda w: selective.auroc([1.0, 0.0], ~right & right, w), ["a", "b"], resamples=50
    )
    assert np.isnan([value, low, high]).all()
