"""The E-VQA score (Encyclopedic-VQA) as the official code computes it.

Definition: google-research/google-research, encyclopedic_vqa/evaluation_utils.py. For a prediction
p and every accepted reference r,

    score = max over r of [ 1 if p matches r exactly or judge(question, r, p) >= 0.5, else 0 ]

The official judge is BEM (arXiv 2202.07654); see `metrics.judges`. Exact match compares normalised
text; in multi_answer questions, the sets of answers must overlap with an intersection over union of
at least 0.5.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.metrics.base import AnswerMetric, AnswerRecord, percent
from ravqa.metrics.judges.asking import Asked, certain, judge_settings, judged

if TYPE_CHECKING:
    from ravqa.metrics.judges.base import Judge

QUESTION_TYPES = ("templated", "automatic", "multi_answer", "2_hop")
_SINGLE_HOP = frozenset({"templated", "automatic"})
_MIN_IOU = 0.5
BETWEEN = "&&"  # between the answers of a multi_answer reference

_PUNCTUATION = str.maketrans(
    "", "", string.punctuation + "\u2018\u2019\u00b4"
)  # curly quotes, acute accent
_DROPPED = re.compile(r"\b(the answer is|a|an|the)\b")
SPAN_MARK = "<extra_id_0> "  # T5 models begin their answers with it
_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0", "true": "yes", "entailment": "yes", "false": "no", "contradiction": "no"}


def normalise(text: str) -> str:
    """Apply the official clean-up: lower case, punctuation deleted, articles dropped, words mapped.

    The official code also writes contractions back ("dont" to "don't"). It does so on both sides,
    after all apostrophes are gone, and words that differ still differ: no comparison depends on it.
    """
    text = _flat(text)
    if text.startswith(SPAN_MARK):
        text = text.replace(SPAN_MARK, "")
    text = _DROPPED.sub(" ", text.translate(_PUNCTUATION))
    return " ".join(_WORDS.get(word, word) for word in text.split())


def with_digits(text: str) -> str:
    """Lower-case, and map number words that stand alone to digits; nothing else is cleaned up."""
    return " ".join(_WORDS.get(word, word) for word in _flat(text).split())


def _flat(text: str) -> str:
    return text.lower().replace("\n", " ").replace("\t", " ").strip()


def exact_match(prediction: str, reference: str, question_type: str) -> bool:
    """Return whether a prediction matches one reference.

    Args:
        reference: the answers of a multi_answer question are separated by "&&".
        question_type: one of QUESTION_TYPES.

    Raises:
        ValueError: the question type is unknown, or nothing of the reference is left after the
            clean-up.
    """
    if question_type not in QUESTION_TYPES:
        raise ValueError(f"unknown question type {question_type!r}: {', '.join(QUESTION_TYPES)}")
    if question_type == "multi_answer":
        wanted = {normalise(part) for part in reference.split(BETWEEN)} - {""}
        listed = prediction.replace(" and ", ",").replace(" & ", ",").split(",")
        given = {normalise(part) for part in listed} - {""}
        right = bool(wanted) and len(wanted & given) / len(wanted | given) >= _MIN_IOU
    else:
        wanted = {normalise(reference)} - {""}
        right = normalise(prediction) in wanted
    if not wanted:
        raise ValueError(f"the reference {reference!r} is empty after the clean-up")
    return right


def single_answers(references: Sequence[str], question_type: str | None) -> list[str]:
    """Return the answers to look for in texts, those of a multi_answer reference one by one."""
    if question_type != "multi_answer":
        return list(references)
    parts = (part.strip() for reference in references for part in reference.split(BETWEEN))
    return list(dict.fromkeys(part for part in parts if part))


def evqa_score(
    prediction: str,
    references: Sequence[str],
    question: str = "",
    question_type: str = "templated",
    judge: Judge | None = None,
) -> float:
    """Return 1.0 if the prediction is right, else 0.0; with BEM as judge, the official score.

    Args:
        references: accepted answers (the file's "answer", split at "|").
        question: its text, for the judge.
        question_type: templated, automatic, multi_answer or 2_hop.
        judge: asked if no reference matches exactly; None means exact match only.

    Raises:
        ValueError: no reference, an empty one, or an unknown question type.
        PromptError, ServerError: the judge failed.
    """
    return certain(evqa_scores([prediction], [references], [question], [question_type], judge)[0])


def evqa_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    questions: Sequence[str],
    question_types: Sequence[str],
    judge: Judge | None = None,
) -> list[float | Failure]:
    """Return `evqa_score` of every question; the judge is asked once, for all not yet right.

    An answer that no reference was found equivalent to, and that was not judged against all of
    them, has a failure: its score hangs on the verdict.

    Raises:
        ValueError: the arguments differ in length, or as `evqa_score`.
    """
    scores: list[float] = []
    asked: list[tuple[int, Asked]] = []
    rows = zip(predictions, references, questions, question_types, strict=True)
    for row, (prediction, accepted, question, kind) in enumerate(rows):
        if not accepted:
            raise ValueError("E-VQA's score needs at least one reference")
        matches = [exact_match(prediction, reference, kind) for reference in accepted]
        scores.append(float(any(matches)))
        if not any(matches):
            asked += [(row, Asked(question, r.replace(BETWEEN, ","), prediction)) for r in accepted]
    return judged(scores, asked, judge)


def type_of(question: Question) -> str:
    """Return the question's type; without one, its references are single answers."""
    return question.question_type or QUESTION_TYPES[0]


class EVQAScore(AnswerMetric):
    """The E-VQA score as an answer metric; without a judge it is exact match."""

    name = "evqa_score"
    label = "E-VQA accuracy"
    forms = frozenset({"evqa"})
    rule = (
        "1 if a reference matches exactly, or the judge gives at least 0.5 that the answer is "
        "equivalent to one, else 0 (google-research, encyclopedic_vqa)"
    )
    uses_judge = True

    def score(self, question: Question, record: AnswerRecord, judge: Judge | None = None) -> float:
        """Return `evqa_score` of the answer.

        Raises:
            ValueError, PromptError, ServerError: as `evqa_score`.
        """
        return certain(self.scores([question], [record], judge)[0])

    def scores(
        self,
        questions: Sequence[Question],
        records: Sequence[AnswerRecord],
        judge: Judge | None = None,
    ) -> list[float | Failure]:
        """Return the scores; the judge is asked once, for all answers that match no reference."""
        given = [(q, r.answer) for q, r in zip(questions, records, strict=True)]
        asked = [(q, answer) for q, answer in given if answer is not None]
        made = iter(
            evqa_scores(
                [answer for _, answer in asked],
                [q.answers for q, _ in asked],
                [q.question for q, _ in asked],
                [type_of(q) for q, _ in asked],
                judge,
            )
        )
        return [0.0 if answer is None else next(made) for _, answer in given]

    def problem(self, question: Question) -> str:
        """Return what is wrong with the question's type or references, if anything."""
        if not question.answers:
            return "no answers"
        if not question.question_type and any(BETWEEN in text for text in question.answers):
            return f"a reference with {BETWEEN!r} needs the question type multi_answer"
        try:
            self.matches(question, "")
        except ValueError as e:
            return str(e)
        return ""

    def summary(self, questions: Sequence[Question], scores: Sequence[float]) -> dict[str, Any]:
        """Return the mean over all questions, and over the single-hop ones, in percent."""
        single = [
            score
            for q, score in zip(questions, scores, strict=True)
            if q.question_type in _SINGLE_HOP
        ]
        return {"score": percent(scores), "single_hop": percent(single) if single else None}

    def settings(self, judge: Judge | None = None) -> dict[str, Any]:
        """Return the judge: its name, and the fingerprint of its weights and settings."""
        return judge_settings(judge)

    def matches(self, question: Question, text: str) -> bool:
        """Return whether a text matches a reference exactly, whatever a judge says."""
        kind = type_of(question)
        return any(exact_match(text, reference, kind) for reference in question.answers)

    def same(self, first: str, second: str) -> bool:
        """Return whether two texts are equal after the clean-up; the judge is not asked again."""
        return normalise(first) == normalise(second)
