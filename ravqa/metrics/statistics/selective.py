"""Selective answering: what a system gains by answering only where it is confident.

A question is answered if its confidence reaches a threshold. Coverage is the share of questions
that are answered, risk the mean loss of their answers (El-Yaniv and Wiener 2010; for visual
question answering, Whitehead et al. 2022, arXiv 2204.13631). Questions of equal confidence are one
set: no threshold divides them, so they are answered together or not at all, and no value depends
on their order. A confidence of -inf means that the system itself gave no answer.

The functions take one number per question, and optionally `weights`, how often each question
counts: [..., questions]. They return one value per row of weights, [...], and a single one without
weights. `bootstrap` resamples clusters (images) as `statistics.intervals` does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ravqa.metrics.statistics.intervals import Interval, batches

RESAMPLES = 1_000
"""Fewer than for means: a resample takes time proportional to the number of questions."""
BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017 (arXiv 1706.04599)."""
_ROUNDING = 1e-9

Statistic = Callable[[np.ndarray], np.ndarray]
"""From weights, [resamples, questions], to a value for each resample: [resamples, ...]."""


class Curve(NamedTuple):
    """A risk-coverage curve: a point for each different confidence, highest first.

    Attributes:
        thresholds: [points].
        coverage, risk: of answering all questions whose confidence is at least the threshold,
            [..., points]. The risk is NaN where the coverage is 0.
    """

    thresholds: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray

    def area(self) -> np.ndarray:
        """Return the area under the curve; see `aurc`."""
        steps = np.diff(self.coverage, axis=-1, prepend=0)
        area: np.ndarray = np.nansum(steps * self.risk, axis=-1)
        return area

    def coverage_at(self, risk: float) -> np.ndarray:
        """Return the largest coverage at a risk of at most `risk`; see `coverage_at_risk`."""
        found: np.ndarray = np.where(self._keeps(risk), self.coverage, 0).max(axis=-1)
        return found

    def risk_at(self, coverages: Sequence[float]) -> np.ndarray:
        """Return the risk at the smallest possible coverage of at least each given one.

        Args:
            coverages: above 0, at most 1.

        Returns:
            [..., coverages].
        """
        wanted = np.asarray(coverages) - _ROUNDING
        rows = self.coverage.reshape(-1, self.coverage.shape[-1])
        reached = np.stack([np.searchsorted(row, wanted) for row in rows])
        reached = reached.reshape(*self.coverage.shape[:-1], len(wanted))
        return np.take_along_axis(self.risk, reached, axis=-1)

    def threshold_at(self, risk: float) -> float | None:
        """Return the threshold of `coverage_at`, for a single curve; None if there is none."""
        good = self.thresholds[self._keeps(risk)]
        return float(good[-1]) if len(good) else None

    def _keeps(self, risk: float) -> np.ndarray:
        kept: np.ndarray = (self.risk <= risk + _ROUNDING) & (self.thresholds > -np.inf)
        return kept


def risk_coverage(
    confidence: ArrayLike, losses: ArrayLike, weights: ArrayLike | None = None
) -> Curve:
    """Return the risk-coverage curve.

    Args:
        confidence: higher means more confident.
        losses: 1 minus the score of each answer, 0 to 1.
        weights: see above.

    Raises:
        ValueError: no questions, not one loss for each, or a confidence that is NaN.
    """
    values, loss, weight = _checked(confidence, losses, weights)
    order = np.argsort(-values, kind="stable")
    ordered, weight = values[order], weight[..., order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    covered = np.cumsum(weight, axis=-1)[..., ends]
    lost = np.cumsum(weight * loss[order], axis=-1)[..., ends]
    with np.errstate(invalid="ignore"):
        return Curve(ordered[ends], covered / covered[..., -1:], lost / covered)


def aurc(confidence: ArrayLike, losses: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """Return the area under the risk-coverage curve, 0 to 1; lower is better.

    This is the mean over all questions of the risk at the question's own confidence (Geifman et
    al. 2019, arXiv 1805.08206), so that questions of equal confidence share one risk. A constant
    confidence gives the risk of answering everything.
    """
    return risk_coverage(confidence, losses, weights).area()


def coverage_at_risk(
    confidence: ArrayLike, losses: ArrayLike, risk: float, weights: ArrayLike | None = None
) -> np.ndarray:
    """Return the largest coverage at a risk of at most `risk`, 0 to 1; 0 if there is none.

    Questions with a confidence of -inf are never answered.
    """
    return risk_coverage(confidence, losses, weights).coverage_at(risk)


def auroc(confidence: ArrayLike, right: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """Return the probability that a right answer has a higher confidence than a wrong one.

    This is the area under the ROC curve, 0 to 1, .5 for a confidence that tells nothing. Pairs of
    equal confidence count half. NaN if all answers are right, or none is.
    """
    values, is_right, weight = _checked(confidence, right, weights)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    rights, wrongs = (
        np.add.reduceat((weight * kind)[..., order], starts, axis=-1)
        for kind in (is_right, 1 - is_right)
    )
    below = np.cumsum(wrongs, axis=-1) - wrongs / 2
    with np.errstate(invalid="ignore"):
        area: np.ndarray = (rights * below).sum(-1) / (rights.sum(-1) * wrongs.sum(-1))
    return area


def calibration_error(
    probabilities: ArrayLike, right: ArrayLike, weights: ArrayLike | None = None, bins: int = BINS
) -> np.ndarray:
    """Return the expected calibration error (ECE), 0 to 1.

    It is the mean difference, over the questions, of the mean probability and the share of right
    answers in a question's bin; the bins are equally wide, each with its upper end (Guo et al.
    2017).

    Args:
        probabilities: probability that each answer is right, 0 to 1.
        right: whether it is.
    """
    values, is_right, weight = _checked(probabilities, right, weights)
    places = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
    gaps = (weight * (values - is_right)) @ np.eye(bins)[places]
    error: np.ndarray = np.abs(gaps).sum(-1) / weight.sum(-1)
    return error


def brier(
    probabilities: ArrayLike, right: ArrayLike, weights: ArrayLike | None = None
) -> np.ndarray:
    """Return the Brier score: the mean squared error of the probabilities, 0 to 1."""
    values, is_right, weight = _checked(probabilities, right, weights)
    score: np.ndarray = weight @ (values - is_right) ** 2 / weight.sum(-1)
    return score


def bootstrap(
    statistic: Statistic,
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a statistic with its 95 % percentile bootstrap interval over clusters.

    Resamples for which it is not defined (NaN) are left out. Equal clusters and seeds give equal
    resamples, so that the difference of two statistics is a statistic too.

    Args:
        statistic: from weights of the questions to values.
        clusters: cluster (image) of each question.

    Returns:
        Value, lower end and upper end, each of the shape that the statistic has for one resample;
        ends are NaN if no resample has a value.
    """
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    places = np.array([number[cluster] for cluster in clusters])
    value = statistic(np.ones((1, len(places))))[0]
    rng = np.random.default_rng(seed)
    draws = np.empty((resamples, *np.shape(value)))
    for part in batches(resamples, len(places)):
        size = part.stop - part.start
        drawn = rng.multinomial(len(number), np.full(len(number), 1 / len(number)), size=size)
        draws[part] = statistic(drawn[:, places].astype(np.float64))
    missing = np.isnan(draws).all(axis=0)
    ends = np.nanpercentile(np.where(missing, 0.0, draws), [2.5, 97.5], axis=0)
    low, high = np.where(missing, np.nan, ends)
    return value, low, high


def bootstrap_interval(
    statistic: Statistic,
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return `bootstrap` of a statistic with one value per resample."""
    value, low, high = bootstrap(statistic, clusters, seed=seed, resamples=resamples)
    return Interval(float(value), float(low), float(high))


def _checked(
    values: ArrayLike, others: ArrayLike, weights: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first, second = np.asarray(values, np.float64), np.asarray(others, np.float64)
    if first.ndim != 1 or not len(first) or first.shape != second.shape:
        raise ValueError("one number per question is expected, and one question at least")
    if np.isnan(first).any():
        raise ValueError("a confidence is not a number")
    weight = np.ones(len(first)) if weights is None else np.asarray(weights, np.float64)
    return first, second, weight
