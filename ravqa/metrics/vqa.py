"""VQA accuracy as the official code computes it (OK-VQA is scored with it).

Definition and order of the clean-up: GT-Vision-Lab/VQA,
PythonEvaluationTools/vqaEvaluation/vqaEval.py. With ten answers a_1..a_10 and a prediction p,

    acc(p) = 1/10 * sum_j min(1, |{i != j : a_i = p}| / 3)

which gives 0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3 and 4 or more agreeing annotators. The quirks of the
official code are kept, because published numbers contain them:

- nothing is cleaned up if the ten answers are the same string: "Pizza" against ten "pizza" is 0;
- a punctuation mark next to a space anywhere, or a digit,digit anywhere, decides for every
  occurrence of that mark whether it is deleted or replaced by a space;
- at most 32 periods are removed, and only those not followed by a digit;
- annotators are left out by position (the official code compares records that differ by their id).

The official evaluator also changes the annotations in memory, so that scoring twice can give
another result; here the inputs are not changed and every call gives the first result.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal, get_args

from ravqa.core.records import Question
from ravqa.metrics.base import AnswerMetric, AnswerRecord

if TYPE_CHECKING:
    from ravqa.metrics.judges.base import Judge

Normalization = Literal["official", "always"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
EM_NS = (1, 2, 3, 4, 5)

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")  # the official pattern, typo included
_MAX_PERIODS = 32  # the official code passes re.UNICODE (32) where `count` stands
_COMMA_IN_NUMBER = re.compile(r"(\d)(,)(\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
        ]
    )
} | {"none": "0"}


@cache
def _contractions() -> dict[str, str]:
    text = files("ravqa.metrics").joinpath("vqa_contractions.json").read_text(encoding="utf-8")
    table: dict[str, str] = json.loads(text)["contractions"]
    return table


def normalise(text: str) -> str:
    """Apply the official clean-up: punctuation, then number words, articles, contractions.

    >>> normalise("The Golden-Retriever")
    'golden retriever'
    """
    return _fix_words(without_punctuation(_strip(text)))


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str) -> str:
    """Apply the official treatment of punctuation alone."""
    out = text
    number_with_comma = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        if mark not in text:
            continue
        beside_space = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if beside_space or number_with_comma else " ")
    return _PERIOD.sub("", out, count=_MAX_PERIODS)


def _fix_words(text: str) -> str:
    words = (_NUMBER_WORDS.get(word, word) for word in text.lower().split())
    contractions = _contractions()
    return " ".join(contractions.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(
    prediction: str, answers: Sequence[str], normalization: Normalization = "official"
) -> float:
    """Return the accuracy of one prediction, 0 to 1.

    Args:
        prediction: the short answer.
        answers: the annotators' answers, ten in the official data; they are not changed.
        normalization: "official" does not change strings if all answers are the same; "always"
            cleans up everywhere.

    Raises:
        ValueError: there are no answers, or the normalization is unknown.
    """
    if not answers:
        raise ValueError("VQA accuracy needs at least one reference answer")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"unknown normalization {normalization!r}: official or always")
    prediction, cleaned_answers = cleaned(prediction, answers, normalization)
    return leave_one_out(cleaned_answers.count(prediction), len(answers))


def cleaned(
    prediction: str, answers: Sequence[str], normalization: Normalization = "official"
) -> tuple[str, list[str]]:
    """Return prediction and answers after the clean-up; see `vqa_accuracy`."""
    prediction = _strip(prediction)
    counts = Counter(_strip(answer) for answer in answers)
    if normalization == "official" and len(counts) <= 1:
        return prediction, list(counts.elements())
    found = Counter[str]()
    for answer, n in counts.items():
        found[normalise(answer)] += n
    return normalise(prediction), list(found.elements())


def leave_one_out(agreeing: int, annotators: int) -> float:
    """Return the accuracy from the number of annotators who agree with a prediction, 0 to 1."""
    others = annotators - agreeing
    left_out = agreeing * min(1.0, (agreeing - 1) / 3) + others * min(1.0, agreeing / 3)
    return left_out / annotators


def vqa_accuracies(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    normalization: Normalization = "official",
) -> list[float]:
    """Return `vqa_accuracy` of each prediction; 100 * mean is a dataset's score.

    Raises:
        ValueError: numbers of predictions and lists of answers differ, or as `vqa_accuracy`.
    """
    if len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions for {len(answers)} lists of answers")
    return [vqa_accuracy(p, a, normalization) for p, a in zip(predictions, answers, strict=True)]


def is_answer(prediction: str, answers: Iterable[str]) -> bool:
    """Return whether a prediction is one of the annotators' answers (EM)."""
    return normalise(prediction) in {normalise(answer) for answer in answers}


def exact_match_at_n(
    candidates: Sequence[str],
    scores: Sequence[float],
    answers: Sequence[str],
    ns: Sequence[int] = EM_NS,
) -> dict[int, float]:
    """Return 1.0 for each n with an answer among the n best different candidates, else 0.0.

    Args:
        candidates: the answers generated from single documents.
        scores: of the candidates, higher is better (joint log-probabilities); among equal ones the
            earlier candidate comes first.
        answers: the annotators' answers.

    Raises:
        ValueError: not one score per candidate, or an n below 1.
    """
    if len(candidates) != len(scores):
        raise ValueError("one score per candidate is expected")
    if any(n < 1 for n in ns):
        raise ValueError("n is a number of candidates, at least 1")
    order = sorted(range(len(candidates)), key=lambda i: -scores[i])
    ranked = list(dict.fromkeys(normalise(candidates[i]) for i in order))
    right = {normalise(answer) for answer in answers}
    return {n: float(any(candidate in right for candidate in ranked[:n])) for n in ns}


class VQAAccuracy(AnswerMetric):
    """VQA accuracy as an answer metric; an answer is right if it is one of the references."""

    class Config(AnswerMetric.Config):
        """Options of VQA accuracy.

        Attributes:
            normalization: "official" does not change strings if all answers are the same; "always"
                cleans up everywhere, which is not the official rule.
        """

        normalization: Normalization = "official"

    config: Config
    name = "vqa_accuracy"
    label = "VQA accuracy"
    forms = frozenset({"vqa"})
    rule = (
        "mean over annotators of min(1, matches among the other annotators / 3), after the "
        "official clean-up (GT-Vision-Lab/VQA, vqaEval.py)"
    )
    right = "one of the references"

    def score(self, question: Question, record: AnswerRecord, judge: Judge | None = None) -> float:
        """Return `vqa_accuracy` of the answer.

        Raises:
            ValueError: as `vqa_accuracy`.
        """
        return vqa_accuracy(record.answer or "", question.answers, self.config.normalization)

    def matches(self, question: Question, text: str) -> bool:
        """Return whether a text is one of the annotators' answers after the clean-up."""
        return is_answer(text, question.answers)

    def is_right(self, question: Question, record: AnswerRecord, score: float) -> bool:
        """Return whether the answer is one of the annotators'; a score may be fractional."""
        return record.answer is not None and self.matches(question, record.answer)

    def exact_match_at_n(
        self, question: Question, texts: Sequence[str], scores: Sequence[float]
    ) -> dict[int, float]:
        """Return RA-VQA's EM@n; see `exact_match_at_n`."""
        return exact_match_at_n(texts, scores, question.answers)
