"""Prior probabilities of passages, p(z | x), from their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Prior = Literal["scores", "retrieval", "uniform"]


def log_priors(scores: Sequence[float | None], prior: Prior, temperature: float) -> list[float]:
    """Return log p(z_k | x) for scores s_1..s_K: log softmax(s / T)_k, or -log K if uniform.

    Args:
        scores: None for the empty passage, whose score is the mean of the others' (as in BERAG's
            released code, EriChen0615/BERAG).
    """
    if prior == "uniform":
        return [-math.log(len(scores))] * len(scores)
    known = [score for score in scores if score is not None]
    mean = sum(known) / len(known) if known else 0.0
    return log_softmax([mean if score is None else score for score in scores], temperature)


def log_softmax(scores: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return the natural log of softmax(scores / temperature)."""
    scaled = [score / temperature for score in scores]
    if max(scaled) == -math.inf:  # no passage has a score: they are equal
        return [-math.log(len(scaled))] * len(scaled)
    norm = log_sum(scaled)
    return [s - norm for s in scaled]


def log_sum(logs: Sequence[float]) -> float:
    """Return the log of the sum of exp(logs); minus infinity for no values."""
    top = max(logs, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in logs))
