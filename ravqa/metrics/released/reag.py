"""ReAG, aimagelab/ReAG: the official scores, of answers that are cut before."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ravqa.core.records import Question
from ravqa.metrics.judges.asking import Asked
from ravqa.metrics.released.base import Source
from ravqa.metrics.released.evqa import EVQARule
from ravqa.metrics.released.infoseek_eval import Official
from ravqa.metrics.released.tags import ANSWER

_REPOSITORY = "aimagelab/ReAG"
_LENGTH = 128
_ANSWER = re.compile(f"{ANSWER}(.*?)</answer>")
_TAGS = re.compile("</?(?:answer|think)>")


def extracted(text: str) -> str:
    """Return the answer in a prediction.

    That is what the first <answer> and </answer> on one line hold, else what follows <answer>, else
    what follows the first </think>, else everything, without these tags.
    """
    found = _ANSWER.search(text)
    if found:
        text = found[1]
    else:
        for tag in (ANSWER, "</think>"):
            if tag in text:
                text = text.partition(tag)[2]
                break
    return _TAGS.sub("", text).strip()


class First128(EVQARule):
    """An answer after that is lost; one in front is freed of what follows it."""

    name = "reag.first_128"
    label = "ReAG, E-VQA"
    rule = "as evqa.official, of the answer's first 128 characters"
    source = Source(
        _REPOSITORY,
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


class ForInfoSeek(Official):
    """The official rule on the extracted answer, as it works without strict parsing."""

    name = "reag.infoseek"
    label = "ReAG, InfoSeek"
    rule = (
        f"as infoseek.official, of what {ANSWER} holds or what follows the thinking (the code was "
        "read, not run)"
    )
    source = Source(
        _REPOSITORY,
        "cea797f6",
        "retrieval.py, evaluation_infoseek.py",
        "the extraction without strict parsing, evaluate",
    )
    published = "not quoted here (sources conflict)"

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0."""
        return super().of_text(question, extracted(text))
