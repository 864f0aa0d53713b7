"""Confidence intervals and paired tests over questions.

Questions about the same image are not independent, so both resample images (clusters), not
questions: the cluster bootstrap (percentile interval; Efron and Tibshirani 1993, chapter 13; for
clusters, Field and Welsh 2007) and a sign-flip permutation test on the clusters' differences. These
are scipy.stats.bootstrap (method "percentile") and scipy.stats.permutation_test
(permutation_type "samples") on clusters; only the sampling differs. Scores have few different
values, so the counts of each value are drawn: from a multinomial for the bootstrap, from binomials
for the signs. The distribution is the same, but the cost does not grow with the number of
questions.

Few clusters, or clusters that hardly differ, make a percentile interval far too narrow: `estimate`
and `estimate_of_difference` say where one means something.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

RESAMPLES = 10_000
MIN_CLUSTERS = 10
"""Fewest images (for seconds: timed batches) for which results give an interval."""
MIN_DIFFERING = 6
"""Fewest images on which two systems differ for an interval of their difference.

With five, no sign-flip test gives a p below 2 / 2^5 = .0625, and yet a percentile interval may
exclude 0.
"""
_LEVEL = 0.05  # of the test that a 95 % interval belongs to
_MAX_DRAWS = 4_000_000
_DECIMALS = 9

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, with its 95 % interval if there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    def text(self, decimals: int = 1) -> str:
        """Return the text shown in tables: "18.7 [12.7, 25.3]"."""
        text = f"{self.value:.{decimals}f}"
        return f"{text} {self.range(decimals)}" if self.has_interval else text

    def range(self, decimals: int = 1) -> str:
        """Return the interval as tables show it: "[12.7, 25.3]", or "-" if there is none."""
        if self.low is None or self.high is None:
            return "-"
        return f"[{self.low:.{decimals}f}, {self.high:.{decimals}f}]"

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None and self.high is not None

    def bounds(self, decimals: int) -> list[float | None]:
        """Return the two ends as results keep them, rounded; both None without an interval."""
        return [None if x is None else round(x, decimals) for x in (self.low, self.high)]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval, in the unit of the scores."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Difference of two systems on the same questions.

    Attributes:
        difference: mean of first minus second with its 95 % bootstrap interval.
        p_value: two-sided, from sign flips of the clusters' differences.
        wins, losses, ties: questions on which the first is better, worse, equal.
    """

    difference: Interval
    p_value: float
    wins: int
    losses: int
    ties: int


def why_none(images: int, *, of_score: bool, of_difference: bool) -> list[str]:
    """Return notes for a table in which intervals are missing: the reasons that apply.

    Args:
        images: number of different images.
        of_score, of_difference: whether an interval of that kind is missing.
    """
    if images < MIN_CLUSTERS and (of_score or of_difference):
        return [f"No intervals: fewer than {MIN_CLUSTERS} images."]
    notes = ["A score without an interval is the same for every image."] if of_score else []
    if of_difference:
        notes.append(
            f"A difference has no interval if fewer than {MIN_DIFFERING} images differ, or if it "
            "would contradict p."
        )
    return notes


def estimate(interval: Interval, clusters: Iterable[Hashable]) -> Estimate:
    """Return a mean with its interval, if that means something.

    It does if there are `MIN_CLUSTERS` clusters and they are not all equal.

    Args:
        clusters: cluster of each question that the interval was computed from.
    """
    few = len(set(clusters)) < MIN_CLUSTERS
    if few or interval.high - interval.low < 10**-_DECIMALS:
        return Estimate(interval.mean)
    return Estimate(interval.mean, interval.low, interval.high)


def estimate_of_difference(
    test: PairedTest,
    first: Mapping[Key, float],
    second: Mapping[Key, float],
    clusters: Mapping[Key, Hashable],
) -> Estimate:
    """Return the difference of two systems with its interval, if that means something.

    As for `estimate`, and the systems must differ in `MIN_DIFFERING` clusters. An interval that
    disagrees with the test, which happens close to p = .05, is too narrow, and is left out: what is
    shown excludes 0 if and only if p < .05.

    Args:
        first, second: the scores that were tested.
        clusters: cluster of each question.
    """
    differing = {clusters[q] for q, score in first.items() if score != second[q]}
    found = test.difference
    significant = found.low > 0 or found.high < 0
    if len(differing) < MIN_DIFFERING or significant != (test.p_value < _LEVEL):
        return Estimate(found.mean)
    return estimate(found, (clusters[q] for q in first))


def _cluster_sums(
    scores: Sequence[float], clusters: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the scores and the number of questions of each cluster."""
    # Rounded, so that equal scores and sums of equal scores are one value.
    values = np.round(np.asarray(scores, dtype=np.float64), _DECIMALS)
    if clusters is None:
        return values, np.ones_like(values)
    if len(clusters) != len(values):
        raise ValueError("one cluster per score is expected")
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    index = np.array([number[c] for c in clusters], dtype=np.int64)
    sums = np.round(np.bincount(index, weights=values), _DECIMALS)
    return sums, np.bincount(index).astype(np.float64)


def batches(resamples: int, values: int) -> Iterator[slice]:
    """Yield slices of resamples whose `values` values each fit within a bound of memory."""
    step = max(1, _MAX_DRAWS // values)
    for start in range(0, resamples, step):
        yield slice(start, min(start + step, resamples))


def resampled_totals(clusters: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Return column sums of bootstrap samples of clusters: [resamples, columns].

    Args:
        clusters: sums of each cluster, [clusters, columns].
    """
    rng = np.random.default_rng(seed)
    kinds, often = np.unique(clusters, axis=0, return_counts=True)
    totals = np.empty((resamples, clusters.shape[1]))
    for part in batches(resamples, len(kinds)):
        drawn = rng.multinomial(len(clusters), often / len(clusters), size=part.stop - part.start)
        totals[part] = drawn @ kinds
    return totals


def _bootstrap_means(sums: np.ndarray, counts: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    total, questions = resampled_totals(np.stack([sums, counts], axis=1), seed, resamples).T
    means: np.ndarray = total / questions
    return means


def bootstrap(
    scores: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the mean of `scores` with a 95 % percentile bootstrap interval.

    Args:
        scores: one per question.
        clusters: cluster of each question (its image); None resamples questions.

    Raises:
        ValueError: no scores, or not one cluster per score.
    """
    if len(scores) == 0:
        raise ValueError("an interval needs at least one score")
    sums, counts = _cluster_sums(scores, clusters)
    low, high = np.percentile(_bootstrap_means(sums, counts, seed, resamples), [2.5, 97.5])
    return Interval(float(np.mean(scores)), float(low), float(high))


def paired_test(
    first: Mapping[Key, float],
    second: Mapping[Key, float],
    clusters: Mapping[Key, Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedTest:
    """Compare two systems' scores on the same questions.

    Args:
        first, second: score per question id.
        clusters: cluster (image) per question id.

    Raises:
        ValueError: the questions differ, or there are none.
    """
    if first.keys() != second.keys():
        raise ValueError("a paired test needs the same questions on both sides")
    ids = list(first)
    differences = [first[q] - second[q] for q in ids]
    groups = None if clusters is None else [clusters[q] for q in ids]
    interval = bootstrap(differences, groups, seed=seed, resamples=resamples)
    sums, _ = _cluster_sums(differences, groups)
    sizes, often = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    rng = np.random.default_rng(seed)
    observed = abs(sums.sum()) - 1e-12 * (sizes @ often)  # equal sums count as equal when rounded
    extreme = 0
    if len(sizes):
        for part in batches(resamples, len(sizes)):
            positive = rng.binomial(often, 0.5, size=(part.stop - part.start, len(sizes)))
            extreme += int((np.abs((2 * positive - often) @ sizes) >= observed).sum())
    else:
        extreme = resamples
    p_value = (extreme + 1) / (resamples + 1)
    return PairedTest(
        difference=interval,
        p_value=p_value,
        wins=sum(d > 0 for d in differences),
        losses=sum(d < 0 for d in differences),
        ties=sum(d == 0 for d in differences),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple comparisons (Holm 1979), in the given order.

    With the p-values in ascending order p_1..p_m, the i-th becomes the largest of min(1, (m - j +
    1) * p_j) over j <= i. Rejecting what stays at most alpha keeps the probability of one or more
    false rejections at most alpha, however the tests depend on each other.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[i]))
        corrected[i] = largest
    return corrected
