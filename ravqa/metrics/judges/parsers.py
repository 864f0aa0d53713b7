"""How released judges read a model's reply, each with a prompt that asks for its form.

The prompts are ravqa's own: a number made with them is not the source's, whatever the parser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ravqa.metrics.judges.base import NotAttempted
from ravqa.metrics.released import pixelrag, pmsr, promsa

Name = Literal["pixelrag.worldvqa", "pixelrag.simpleqa", "pmsr.llm", "promsa"]

_TRIPLE = """\
Question about an image: {question}
Reference answer: {reference}
Candidate answer: {candidate}

"""
_THREE = (
    _TRIPLE
    + """\
Given the question, is the candidate answer correct (it means the same as the reference answer or \
is more precise), incorrect (it contradicts the reference answer or is less precise), or \
unattempted (it gives no answer)?
"""
)
_TWO = (
    _TRIPLE
    + """\
Given the question, does the candidate answer mean the same as the reference answer, or the same \
with more detail?
Reply with <judge>Yes</judge> or <judge>No</judge> alone.
"""
)


@dataclass(frozen=True, slots=True)
class Parser:
    """A way to read replies.

    Attributes:
        prompt: asks for a reply of this form.
        labels: number of labels.
        read: returns 1 for right, 0 for wrong, `NotAttempted`, or NaN where a reply has no verdict.
    """

    prompt: str
    labels: Literal[2, 3]
    read: Callable[[str], float]


def _of_label(label: pixelrag.Label) -> float:
    return NotAttempted() if label == "unattempted" else float(label == "correct")


def _of_verdict(verdict: str | None) -> float:
    return math.nan if verdict is None else float(verdict.lower() == "yes")


PARSERS: Mapping[Name, Parser] = {
    "pixelrag.worldvqa": Parser(
        _THREE + "Reply with one line: Label: Correct, Label: Incorrect, or Label: Unattempted.\n",
        3,
        lambda reply: _of_label(pixelrag.label_of(reply)),
    ),
    "pixelrag.simpleqa": Parser(
        _THREE + "Reply with one letter: A for correct, B for incorrect, C for unattempted.\n",
        3,
        lambda reply: _of_label(pixelrag.label_of_letter(reply)),
    ),
    "pmsr.llm": Parser(_TWO, 2, lambda reply: _of_verdict(pmsr.verdict_of(reply))),
    "promsa": Parser(_TWO, 2, lambda reply: float(promsa.accepts(reply))),
}
"""By the name of its source."""
