"""How probable each passage is before it is read: p(z | x), from its score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Prior = Literal["scores", "retrieval", "uniform"]


def log_priors(scores: Sequence[float | None], prior: Prior, temperature: float) -> list[float]:
    """log p(z_k | x) of K passages with scores s_k: log softmax(s / T)_k, or if uniform -log K.

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
    """Natural log of softmax(scores / temperature)."""
    scaled = [score / temperature for score in scores]
    if max(scaled) == -math.inf:  # no passage has a score: they are equal
        return [-math.log(len(scaled))] * len(scaled)
    norm = log_sum(scaled)
    return [s - norm for s in scaled]


def log_sum(logs: Sequence[float]) -> float:
    """log of the sum of exp(logs); minus infinity for none."""
    top = max(logs, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in logs))
