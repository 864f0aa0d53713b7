"""VQA accuracy as the official code computes it (OK-VQA is scored with it).

Definition and order of the clean-up: GT-Vision-Lab/VQA,
PythonEvaluationTools/vqaEvaluation/vqaEval.py. With ten answers a_1..a_10 and a prediction p,

    acc(p) = 1/10 * sum_j min(1, |{i != j : a_i = p}| / 3)

which gives 0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3 and 4 or more agreeing annotators. The quirks of the
official code are kept, because published numbers contain them:

- nothing is cleaned up if the ten answers are the same string: "Pizza" against ten "pizza" is 0;
- a punctuation mark anywhere beside a space, or a digit,digit anywhere, decides for every
  occurrence of that mark whether it is deleted or replaced by a space;
- at most 32 periods are removed, and only those not followed by a digit;
- annotators are left out by position (the official code compares records that differ by their id).

The official evaluator also changes the annotations in memory, so that scoring twice can give
another result; here the inputs are left alone and every call gives the first result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

from ravqa.metrics.coverage import check_coverage

Mode = Literal["official", "always_normalise"]

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
    """The official clean-up of an answer: punctuation, then number words, articles, contractions.

    >>> normalise("The Golden-Retriever")
    'golden retriever'
    """
    return _fix_words(_fix_punctuation(_strip(text)))


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _fix_punctuation(text: str) -> str:
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


def score(prediction: str, answers: Sequence[str], *, mode: Mode = "official") -> float:
    """Accuracy of one prediction, 0 to 1.

    Args:
        prediction: the short answer.
        answers: the annotators' answers, ten in the official data.
        mode: "official" leaves strings alone where all answers are the same; "always_normalise"
            cleans up everywhere, as lmms-eval does since its pull request 794.

    Raises:
        ValueError: there are no answers, or the mode is unknown.
    """
    if not answers:
        raise ValueError("VQA accuracy needs at least one reference answer")
    if mode not in ("official", "always_normalise"):
        raise ValueError(f"unknown mode {mode!r}: official or always_normalise")
    prediction = _strip(prediction)
    references = [_strip(answer) for answer in answers]
    if mode == "always_normalise" or len(set(references)) > 1:
        prediction = normalise(prediction)
        references = [normalise(reference) for reference in references]
    matches = [reference == prediction for reference in references]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


def score_dataset(
    predictions: Mapping[int | str, str],
    answers: Mapping[int | str, Sequence[str]],
    *,
    mode: Mode = "official",
) -> tuple[float, dict[int | str, float]]:
    """Score of a dataset in percent, rounded to two decimals, and each question's (0 to 100).

    As in the official code, the per-question scores are rounded to two decimals and the overall
    score is the mean of the unrounded ones.

    Raises:
        ValueError: predictions and answers are not for the same questions.
    """
    check_coverage(predictions, answers)
    exact = {q: score(predictions[q], answers[q], mode=mode) for q in answers}
    overall = round(100 * sum(exact.values()) / len(exact), 2) if exact else 0.0
    return overall, {q: round(100 * s, 2) for q, s in exact.items()}
