"""Intervals and paired tests for a harmonic mean of groups' means, as InfoSeek's final score is.

The score of a system is the harmonic mean, over the groups of questions (InfoSeek: unseen questions
and unseen entities), of the mean score in each. As in `statistics.intervals`, clusters (images) are
resampled, and the permutation test swaps whole clusters between the systems.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from ravqa.metrics.statistics.intervals import (
    RESAMPLES,
    Interval,
    PairedTest,
    batches,
    resampled_totals,
)

_TINY = 1e-12  # value of a group's mean of 0 in the official code
_DECIMALS = 9

Key = TypeVar("Key", bound=Hashable)


def harmonic_bootstrap(
    scores: Sequence[float],
    groups: Sequence[Hashable],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the harmonic mean of group means with a 95 % percentile bootstrap interval.

    Args:
        scores: one per question, not negative.
        groups, clusters: group and cluster of each question.

    Raises:
        ValueError: no scores, or not one group and cluster per score.
    """
    if not len(scores) or not len(scores) == len(groups) == len(clusters):
        raise ValueError("one group and one cluster per score are expected, and one score at least")
    table = _table([scores], groups, clusters)
    value = float(_harmonic(table.sum(0, keepdims=True))[0])
    drawn = _harmonic(resampled_totals(table, seed, resamples))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])  # a resample may lack a small group
    return Interval(value, float(low), float(high))


def harmonic_paired_test(
    first: Mapping[Key, float],
    second: Mapping[Key, float],
    groups: Mapping[Key, Hashable],
    clusters: Mapping[Key, Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedTest:
    """Compare two systems' harmonic means on the same questions; see `intervals.paired_test`.

    Raises:
        ValueError: the questions differ, or there are none.
    """
    if not first or first.keys() != second.keys():
        raise ValueError("a paired test needs the same questions on both sides, at least one")
    ids = list(first)
    values = [[scores[q] for q in ids] for scores in (first, second)]
    table = _table(values, [groups[q] for q in ids], [clusters[q] for q in ids])
    whole = table.sum(0, keepdims=True)
    difference = float(_difference(whole)[0])
    drawn = _difference(resampled_totals(table, seed, resamples))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    wins = sum(first[q] > second[q] for q in ids)
    losses = sum(first[q] < second[q] for q in ids)
    return PairedTest(
        difference=Interval(difference, float(low), float(high)),
        p_value=_p_value(table, abs(difference), seed, resamples),
        wins=wins,
        losses=losses,
        ties=len(ids) - wins - losses,
    )


def _p_value(table: np.ndarray, observed: float, seed: int, resamples: int) -> float:
    """Return the two-sided p-value: how often random swaps of clusters differ as much."""
    half = table.shape[1] // 3
    whole = table.sum(0)
    kinds, often = np.unique(table, axis=0, return_counts=True)
    change = kinds[:, half : 2 * half] - kinds[:, :half]  # of the first's sums, when swapped
    rng = np.random.default_rng(seed)
    extreme = 0
    for part in batches(resamples, len(kinds)):
        swapped = rng.binomial(often, 0.5, size=(part.stop - part.start, len(kinds))) @ change
        totals = np.tile(whole, (len(swapped), 1))
        totals[:, :half] += swapped
        totals[:, half : 2 * half] -= swapped
        extreme += int((np.abs(_difference(totals)) >= observed - 1e-9).sum())
    return (extreme + 1) / (resamples + 1)


def _table(
    values: Sequence[Sequence[float]], groups: Sequence[Hashable], clusters: Sequence[Hashable]
) -> np.ndarray:
    """Return per cluster each system's sum in every group, then the size of every group."""
    group = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    cluster = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    rows = np.array([cluster[name] for name in clusters])
    columns = np.array([group[name] for name in groups])
    parts = []
    for weights in (*values, np.ones(len(rows))):
        part = np.zeros((len(cluster), len(group)))
        np.add.at(part, (rows, columns), np.asarray(weights, dtype=np.float64))
        parts.append(part)
    # Rounded, so that equal sums are one value.
    return np.round(np.concatenate(parts, axis=1), _DECIMALS)


def _harmonic(totals: np.ndarray) -> np.ndarray:
    """Return each row's harmonic mean from [rows, sums and counts]; NaN if a group is empty."""
    sums, counts = np.split(totals, 2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums / counts
    means[means == 0] = _TINY
    result: np.ndarray = means.shape[1] / (1 / means).sum(1)
    return result


def _difference(totals: np.ndarray) -> np.ndarray:
    first, second, counts = np.split(totals, 3, axis=1)
    one, other = (_harmonic(np.concatenate([x, counts], axis=1)) for x in (first, second))
    result: np.ndarray = one - other
    return result
