"""PixelRAG, StarTrail-org/PixelRAG: a language model as judge with three labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.infoseek import normalise
from ravqa.metrics.judges.asking import Asked
from ravqa.metrics.judges.base import NoVerdict
from ravqa.metrics.released.base import ALL, EVQA, JudgedRule, ReleasedRule, Source, texts

_REPOSITORY = "StarTrail-org/PixelRAG"
_COMMIT = "c1dae49ba78e33ff1d02d9f8efd7b9adf9cecb22"
_FILE = "eval/lib/grader.py"

Label = Literal["correct", "incorrect", "unattempted"]
"""What its judges say of an answer."""

_LABEL = re.compile(r"label:\s*(correct|incorrect|unattempted)", re.IGNORECASE)
_SEARCHED: tuple[Label, ...] = ("incorrect", "unattempted", "correct")
_LETTERS: dict[str, Label] = {"A": "correct", "B": "incorrect", "C": "unattempted"}


def label_of(reply: str) -> Label:
    """Return what its judge of WorldVQA and E-VQA says.

    That is the first "Label: X", else the first of incorrect, unattempted and correct that is
    anywhere in the reply, else incorrect. "The answer is not correct." is correct.
    """
    found = _LABEL.search(reply)
    text = (found[1] if found else reply).lower()
    return next((label for label in _SEARCHED if label in text), "incorrect")


def label_of_letter(reply: str) -> Label:
    """Return what its judge of SimpleQA says: the first capital A, B or C, else unattempted.

    It may be in a word: "Because it is right: A" is incorrect.
    """
    return next((_LETTERS[letter] for letter in reply if letter in _LETTERS), "unattempted")


def after_thinking(text: str) -> str:
    """Return what follows the thinking."""
    if "</think>" in text and "<think>" in text:
        return text.rpartition("</think>")[2].strip()
    if "think>" in text:
        return text.rpartition("think>")[2].strip()
    return text


class NqExact(ReleasedRule):
    """Its exact match, which it uses for Natural Questions."""

    name = "pixelrag.nq_exact"
    label = "PixelRAG, exact match"
    rule = "a reference equals the answer without thinking, both after SQuAD's clean-up"
    forms = ALL
    source = Source(_REPOSITORY, _COMMIT, _FILE, "grade_exact_match")

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0."""
        given = normalise(after_thinking(text).replace("Exact Answer: ", ""))
        return float(given in {normalise(reference) for reference in texts(question)})


class JudgeLabels(JudgedRule):
    """Its judge, of which "unattempted" counts like "incorrect" and failed calls are left out."""

    name = "pixelrag.judge"
    label = "PixelRAG, judge"
    rule = "the judge accepts the answer without thinking for one of the references"
    forms = EVQA
    aggregate = "share of right answers among those for which the call of the judge did not fail"
    source = Source(_REPOSITORY, _COMMIT, _FILE, "grade_file('encyclopedic_vqa')")
    published = "E-VQA, landmarks with automatic questions: 27.2, 29.6, 40.7, 45.1 (README)"

    def settled(self, question: Question, text: str) -> float | None:
        """Return None: the judge is asked about everything."""
        return None

    def asked(self, question: Question, text: str) -> Sequence[Asked]:
        """Return the answer with each reference."""
        answer = after_thinking(text)
        return [Asked(question.question, r.strip(), answer) for r in question.answers]

    def counted(
        self, records: Sequence[AnswerRecord], outcomes: Sequence[float | Failure]
    ) -> list[bool]:
        """Return False for calls of the judge that failed."""
        return [
            not isinstance(outcome, Failure) or isinstance(outcome, NoVerdict)
            for outcome in outcomes
        ]
