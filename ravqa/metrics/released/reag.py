"""ReAG, aimagelab/ReAG: the official E-VQA score of the first 128 characters."""

from __future__ import annotations

from collections.abc import Sequence

from ravqa.core.records import Question
from ravqa.metrics.judges.asking import Asked
from ravqa.metrics.released.base import Source
from ravqa.metrics.released.evqa import EVQARule

_LENGTH = 128


class First128(EVQARule):
    """An answer after that is lost; one in front is freed of what follows it."""

    name = "reag.first_128"
    label = "ReAG, E-VQA"
    rule = "as evqa.official, of the answer's first 128 characters"
    source = Source(
        "aimagelab/ReAG",
        "2329680254457455948f0e2c7997adab6d810bf8",
        "src/retrieval_module/evqa_eval/evqa_compute_metrics.py",
        "main",
    )
    published = "in figures of its paper only"

    def settled(self, question: Question, text: str) -> float | None:
        """Return 1 for an exact match, else None."""
        return super().settled(question, text[:_LENGTH])

    def asked(self, question: Question, text: str) -> Sequence[Asked]:
        """Return the cut prediction with each reference."""
        return super().asked(question, text[:_LENGTH])
