"""Holm's correction; intervals and tests of a harmonic mean, against independent computation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.metrics import infoseek
from ravqa.metrics.statistics.harmonic import harmonic_bootstrap, harmonic_paired_test
from ravqa.metrics.statistics.intervals import bootstrap, holm, paired_test


def test_holm_by_hand():
    # statsmodels.stats.multitest.multipletests(..., method="holm") gives the same.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.999))
def test_holm_rejects_as_the_step_down_procedure_does(p_values, alpha):
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = set()
    for place, i in enumerate(order):
        if p_values[i] * (len(p_values) - place) > alpha:
            break
        rejected.add(i)
    corrected = holm(p_values)
    assert {i for i, p in enumerate(corrected) if p <= alpha} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))


def data(seed, images=12):
    """Scores of two systems, splits and images of InfoSeek-like questions."""
    rng = np.random.default_rng(seed)
    ids = range(images * 3)
    clusters = {i: i // 3 for i in ids}
    groups = {i: ("unseen_question", "unseen_entity")[int(rng.integers(2))] for i in ids}
    first, second = ({i: 100.0 * int(rng.integers(2)) for i in ids} for _ in range(2))
    return first, second, groups, clusters


def harmonic(scores, groups, times=None):
    times = times or dict.fromkeys(scores, 1)
    means = []
    for group in set(groups.values()):
        ids = [q for q in scores if groups[q] == group]
        means.append(sum(scores[q] * times[q] for q in ids) / sum(times[q] for q in ids) or 1e-12)
    return len(means) / sum(1 / mean for mean in means)


def test_the_value_is_the_official_final_score():
    first, _, groups, clusters = data(0)
    found = harmonic_bootstrap(list(first.values()), list(groups.values()), list(clusters.values()))
    rows = [(f"val_{groups[q]}", "String", first[q] / 100) for q in first]
    assert found.mean == pytest.approx(infoseek.aggregate(rows)["final_score"], abs=0.02)
    assert found.low < found.mean < found.high


def test_the_interval_is_that_of_resampled_images():
    first, _, groups, clusters = data(1)
    found = harmonic_bootstrap(list(first.values()), list(groups.values()), list(clusters.values()))
    rng = np.random.default_rng(7)
    drawn = []
    for _ in range(4000):
        count = np.bincount(rng.integers(12, size=12), minlength=12)
        times = {q: int(count[clusters[q]]) for q in first}
        drawn.append(harmonic(first, groups, times))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=2)


# By all swaps .23, 1, .19, .54 and .06, for differences of both signs.
@pytest.mark.parametrize("seed", [0, 2, 9, 13, 15])
def test_the_p_value_is_that_of_all_swaps_of_images(seed):
    first, second, groups, clusters = data(seed, images=9)
    found = harmonic_paired_test(first, second, groups, clusters, resamples=20_000)
    observed = harmonic(first, groups) - harmonic(second, groups)
    assert found.difference.mean == pytest.approx(observed)
    extreme = 0
    for swaps in itertools.product([False, True], repeat=9):
        one = {q: (second if swaps[clusters[q]] else first)[q] for q in first}
        other = {q: (first if swaps[clusters[q]] else second)[q] for q in first}
        extreme += abs(harmonic(one, groups) - harmonic(other, groups)) >= abs(observed) - 1e-9
    assert found.p_value == pytest.approx(extreme / 2**9, abs=0.011)


def test_wins_losses_and_ties_are_counted_apart():
    first = {1: 100.0, 2: 100.0, 3: 100.0, 4: 0.0, 5: 100.0, 6: 0.0}
    second = {1: 0.0, 2: 0.0, 3: 0.0, 4: 100.0, 5: 100.0, 6: 0.0}
    found = harmonic_paired_test(first, second, dict.fromkeys(first, "all"), {q: q for q in first})
    assert (found.wins, found.losses, found.ties) == (3, 1, 2)
    turned = harmonic_paired_test(second, first, dict.fromkeys(first, "all"), {q: q for q in first})
    assert (turned.wins, turned.losses, turned.ties) == (1, 3, 2)


def test_one_group_is_the_mean():
    first, second, _, clusters = data(3)
    groups = dict.fromkeys(first, "all")
    values = list(first.values())
    found = harmonic_bootstrap(values, list(groups.values()), list(clusters.values()))
    plain = bootstrap(values, list(clusters.values()))
    assert (found.mean, found.low, found.high) == pytest.approx((plain.mean, plain.low, plain.high))
    test = harmonic_paired_test(first, second, groups, clusters, resamples=20_000)
    other = paired_test(first, second, clusters, resamples=20_000)
    assert test.difference.mean == pytest.approx(other.difference.mean)
    assert test.p_value == pytest.approx(other.p_value, abs=0.015)


def test_nothing_and_other_questions_are_refused():
    with pytest.raises(ValueError, match="one score at least"):
        harmonic_bootstrap([], [], [])
    with pytest.raises(ValueError, match="same questions"):
        harmonic_paired_test({1: 1.0}, {2: 1.0}, {1: "a"}, {1: 1})
