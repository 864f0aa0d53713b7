"""Which answers count as the same one."""

from __future__ import annotations

from typing import Literal

from ravqa.metrics.vqa import normalise

Merge = Literal["vqa", "lower", "exact"]


def merge_key(answer: str, merge: Merge) -> str:
    """What equal answers have in common.

    Args:
        merge: "vqa" is the official clean-up of VQA accuracy (punctuation, articles, number words,
            contractions); "lower" looks past case and spaces; "exact" past nothing.

    >>> merge_key("The Golden-Retriever", "vqa") == merge_key("golden retriever", "vqa")
    True
    """
    if merge == "vqa":
        return normalise(answer)
    return " ".join(answer.casefold().split()) if merge == "lower" else answer
