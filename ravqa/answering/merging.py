"""Equality of answers."""

from __future__ import annotations

from typing import Literal

from ravqa.metrics.vqa import normalise

Merge = Literal["vqa", "lower", "exact"]


def merge_key(answer: str, merge: Merge) -> str:
    """Return a key that is the same for equal answers.

    Args:
        merge: "vqa" is the official clean-up of VQA accuracy (punctuation, articles, number words,
            contractions); "lower" ignores case and spaces; "exact" ignores nothing.

    >>> merge_key("The Golden-Retriever", "vqa") == merge_key("golden retriever", "vqa")
    True
    """
    if merge == "vqa":
        return normalise(answer)
    return " ".join(answer.casefold().split()) if merge == "lower" else answer
