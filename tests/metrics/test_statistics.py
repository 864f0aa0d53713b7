"""What holds of the interval and the test of a mean and of a harmonic mean alike."""

import dataclasses

import numpy as np
import pytest

from ravqa.metrics.statistics import intervals
from ravqa.metrics.statistics.harmonic import harmonic_bootstrap, harmonic_paired_test
from ravqa.metrics.statistics.intervals import (
    Estimate,
    Interval,
    bootstrap,
    estimate,
    estimate_of_difference,
    paired_test,
)


def harmonic_interval(scores, clusters, **options):
    return harmonic_bootstrap(scores, [0] * len(scores), clusters, **options)


def harmonic_test(first, second, clusters, **options):
    return harmonic_paired_test(first, second, dict.fromkeys(first, 0), clusters, **options)


either_interval = pytest.mark.parametrize("interval", [bootstrap, harmonic_interval])
either_test = pytest.mark.parametrize("test", [paired_test, harmonic_test])


def systems(images=9, each=3):
    """Scores between 0 and 1 of two systems, and the images of the questions."""
    rng = np.random.default_rng(0)
    first, second = ({i: rng.uniform(0, 1) for i in range(images * each)} for _ in range(2))
    return first, second, {i: i // each for i in first}


@either_interval
def test_an_interval_is_the_seeds(interval):
    scores, _, clusters = systems()
    data = list(scores.values()), list(clusters.values())
    found = interval(*data, resamples=200)
    assert found == interval(*data, resamples=200, seed=0)
    assert found != interval(*data, resamples=200, seed=1)
    assert found != interval(*data, resamples=300)
    assert interval(*data, resamples=200, seed=1) == interval(*data, resamples=200, seed=1)


@either_test
def test_a_test_is_the_seeds(test):
    data = systems()
    found = test(*data, resamples=200)
    assert found == test(*data, resamples=200, seed=0)
    other = test(*data, resamples=200, seed=1)
    assert other == test(*data, resamples=200, seed=1)
    assert found.p_value != other.p_value
    assert found.difference.mean == other.difference.mean
    assert found.difference != other.difference
    assert found.difference != test(*data, resamples=300).difference


@either_test
@pytest.mark.parametrize("together", [10_000, 7, 1])
def test_p_values_count_what_was_observed_as_one_more(test, together, monkeypatch):
    """Of 99 resamples none, or all: 1/100, or 1, however many are drawn at once."""
    monkeypatch.setattr(intervals, "_MAX_DRAWS", together)
    best, worst = dict.fromkeys(range(60), 0.75), dict.fromkeys(range(60), 0.25)
    assert test(best, worst, {i: i for i in best}, resamples=99).p_value == 1 / 100
    assert test(worst, best, {i: i for i in best}, resamples=99).p_value == 1 / 100
    assert test(best, best, {i: i for i in best}, resamples=99).p_value == 1
    # One image: turned round, the difference is the same.
    assert test(best, worst, dict.fromkeys(best, "image"), resamples=99).p_value == 1


@either_test
def test_the_interval_of_a_difference_is_that_of_resampled_images(test):
    """As wide as of images drawn one by one, not as of questions."""
    first, second, clusters = systems(images=12, each=4)
    second = {q: (second[q] + clusters[q]) / 13 for q in second}  # images differ
    found = test(first, second, clusters, resamples=4000).difference
    rng = np.random.default_rng(7)
    scores = np.array([[s[q] for q in s] for s in (first, second)]).reshape(2, 12, 4)
    drawn = rng.integers(12, size=(8000, 12))
    means = scores.mean(2)[:, drawn].mean(2)
    low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
    assert found.mean == pytest.approx((scores[0] - scores[1]).mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)


def test_the_interval_of_a_difference_is_the_bootstrap_of_differences():
    first, second, clusters = systems()
    found = paired_test(first, second, clusters, seed=3, resamples=500).difference
    differences = [first[q] - second[q] for q in first]
    assert found == bootstrap(differences, list(clusters.values()), seed=3, resamples=500)


@pytest.mark.parametrize("together", [10_000, 7, 1])
def test_batches_cut_the_resamples_once(together, monkeypatch):
    monkeypatch.setattr(intervals, "_MAX_DRAWS", together)
    parts = list(intervals.batches(10, 3))
    assert [i for part in parts for i in range(10)[part]] == list(range(10))
    assert max(part.stop - part.start for part in parts) == {10_000: 10, 7: 2, 1: 1}[together]
    scores, _, clusters = systems()
    found = bootstrap(list(scores.values()), list(clusters.values()), resamples=2000)
    monkeypatch.undo()
    whole = bootstrap(list(scores.values()), list(clusters.values()), resamples=2000)
    assert (found.low, found.high) == pytest.approx((whole.low, whole.high), abs=0.02)


@pytest.mark.parametrize("clusters", [None, range(30)])
def test_scores_are_not_rounded_to_whole_numbers(clusters):
    scores = [0.2, 0.4, 0.3] * 10
    found = bootstrap(scores, clusters)
    assert 0.25 < found.low < found.mean < found.high < 0.35
    first, second = dict(enumerate(scores)), dict.fromkeys(range(30), 0.0)
    images = None if clusters is None else {i: i for i in clusters}
    assert paired_test(first, second, images).p_value < 0.001


def test_one_score_is_its_own_interval():
    assert bootstrap([0.5]) == Interval(0.5, 0.5, 0.5)
    assert harmonic_interval([0.5], [1]) == Interval(0.5, 0.5, 0.5)


def test_a_system_that_is_never_right_has_a_harmonic_mean_of_nothing():
    found = harmonic_bootstrap([0.0, 100.0] * 5, ["a", "b"] * 5, list(range(10)))
    assert dataclasses.astuple(found) == pytest.approx((0, 0, 0), abs=1e-6)


def test_what_cannot_be_tested_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"^an interval needs at least one score$"):
        bootstrap([])
    with pytest.raises(ValueError, match=r"^one cluster per score is expected$"):
        bootstrap([1.0], [1, 2])
    with pytest.raises(ValueError, match=r"^a paired test needs the same questions on both sides$"):
        paired_test({1: 1.0}, {2: 1.0})
    message = "one group and one cluster per score are expected, and one score at least"
    for data in (([], [], []), ([1.0], [1, 2], [1]), ([1.0], [1], [1, 2])):
        with pytest.raises(ValueError, match=f"^{message}$"):
            harmonic_bootstrap(*data)
    message = "a paired test needs the same questions on both sides, at least one"
    for first in ({}, {1: 1.0}):
        with pytest.raises(ValueError, match=f"^{message}$"):
            harmonic_test(first, {}, {1: 1})


def test_estimates_as_they_stand_in_tables():
    assert Estimate(18.66, 12.74, 25.3).text() == "18.7 [12.7, 25.3]"
    assert Estimate(18.666, 12.74, 25.3).text(2) == "18.67 [12.74, 25.30]"
    assert Estimate(18.66).text() == Estimate(18.66, 12.7).text() == "18.7"
    assert Estimate(18.66, high=25.3).text() == "18.7"
    assert Estimate(18.66, 12.74, 25.3).range() == "[12.7, 25.3]"
    assert Estimate(18.66).range() == "-"


# --- which intervals are shown


def of(scores, clusters):
    return estimate(bootstrap(scores, clusters, resamples=200), clusters)


def test_an_interval_needs_ten_images_that_are_not_all_equal():
    scores = [0.0, 100.0, 50.0] * 10
    nine, ten = [i // 3 % 9 for i in range(30)], [i // 3 for i in range(30)]
    assert of(scores, ten).bounds(1) == [None, None]  # each of them has the same mean
    scores[0] = 100.0
    assert of(scores, nine).bounds(1) == [None, None]
    found = of(scores, ten)
    assert found.low < found.value < found.high
    assert of([100.0] * 400, range(400)) == Estimate(100.0)


def test_the_interval_of_a_difference_needs_six_images_that_differ():
    def of_wins(images):
        first = {q: float(q // 2 < images) for q in range(80)}  # two questions an image
        second, clusters = dict.fromkeys(first, 0.0), {q: q // 2 for q in first}
        test = paired_test(first, second, clusters)
        return test.p_value, estimate_of_difference(test, first, second, clusters)

    p, found = of_wins(5)
    assert p == pytest.approx(2 / 2**5, abs=0.01)  # no fewer are significant
    assert found == Estimate(2 * 5 / 80)
    p, found = of_wins(6)
    assert p == pytest.approx(2 / 2**6, abs=0.01)
    assert 0 < found.low < found.value < found.high
    # Nine images are too few, however many of them differ.
    first, clusters = {q: float(q) for q in range(9)}, {q: q for q in range(9)}
    second = dict.fromkeys(first, 0.0)
    test = paired_test(first, second, clusters)
    assert not estimate_of_difference(test, first, second, clusters).has_interval


def test_an_interval_that_is_shown_agrees_with_p():
    """Computed differently, the two may disagree close to p = .05."""
    rng = np.random.default_rng(0)
    agreed = disagreed = 0
    for _ in range(60):
        images = int(rng.integers(10, 40))
        moved = rng.random() * 0.4
        change = rng.choice([0.0, 100.0, -100.0], size=images, p=[1 - moved, moved, 0])
        change[:2] = -100
        first, clusters = dict(enumerate(map(float, change))), {q: q for q in range(images)}
        second = dict.fromkeys(first, 0.0)
        test = paired_test(first, second, clusters, resamples=1000)
        found = estimate_of_difference(test, first, second, clusters)
        excluded = test.difference.low > 0 or test.difference.high < 0
        if np.count_nonzero(change) < 6:
            assert not found.has_interval
        elif excluded == (test.p_value < 0.05):
            agreed += 1
            assert (found.low, found.high) == (test.difference.low, test.difference.high)
        else:
            disagreed += 1
            assert found == Estimate(test.difference.mean)
    assert agreed > 10
    assert disagreed > 0
