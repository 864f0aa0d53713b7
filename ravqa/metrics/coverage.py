"""Predictions must be for the questions that are scored: all of them, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_coverage(predictions: Mapping[Any, Any], references: Mapping[Any, Any]) -> None:
    """Compare the question ids of both sides.

    Raises:
        ValueError: they differ; a score over a part of the questions is no score.
    """
    missing, unknown = (
        references.keys() - predictions.keys(),
        predictions.keys() - references.keys(),
    )
    if missing or unknown:
        raise ValueError(
            f"predictions must cover the references: {len(missing)} are missing, "
            f"{len(unknown)} are unknown"
        )
