"""The InfoSeek score as the official toolkit computes it.

Definition: edchengg/infoseek_eval, infoseek_eval.py. Every question scores 0 or 1:

- String and Time: exact match of normalised text with any string of `answer_eval` (the tolerance
  of a year for Time lies in that list, the code has none);
- Numerical: the one or two numbers read from the prediction must lie in the reference range, or
  the predicted range must overlap it with an intersection over union of at least 0.5.

A split's score is the mean over its questions in percent, rounded to two decimals; the final score
is the harmonic mean of the rounded scores of unseen_question and unseen_entity. The quirks of the
number parser are kept: ".5" is 5, "12.5%" is 12.5, a prediction without digits is the range [0, 0].
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ravqa.metrics.coverage import check_coverage

# the official toolkit's names for a split's scores by question type; all others are strings
_TYPE_SCORES = {"time": "score_time", "numerical": "score_num"}
SPLITS = ("unseen_question", "unseen_entity")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_HYPHEN_AFTER_DIGIT = re.compile(r"(?<=\d)-")
_NUMBER = re.compile(
    r"""
    [-+]? \.?                # a leading dot is matched, and dropped below
    \d+ (?:,\d{3})* \.? \d*  # digits, thousands in groups of three, decimals
    (?:[eE][-+]?\d+)?
    """,
    re.VERBOSE,
)
_MIN_IOU = 0.5 - 1e-12
_ZERO = 1e-12  # the official code puts this for a split score of 0 into the harmonic mean


def normalise(text: str) -> str:
    """Lower case, ASCII punctuation deleted, articles dropped, spaces collapsed."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def score(prediction: str, answer_eval: Sequence[Any], question_type: str) -> int:
    """1 if the prediction is right, else 0.

    Args:
        answer_eval: accepted strings; for Numerical one mapping with "range": [low, high].
        question_type: String, Time or Numerical; in any case of letters.

    Raises:
        ValueError: no reference, or a Numerical one without a range.
    """
    if not answer_eval:
        raise ValueError("InfoSeek's score needs at least one entry in answer_eval")
    if question_type.lower() == "numerical":
        reference = answer_eval[0]
        if not isinstance(reference, Mapping) or len(reference.get("range", ())) != 2:
            raise ValueError('a Numerical question needs answer_eval [{"range": [low, high]}]')
        low, high = (float(bound) for bound in reference["range"])
        return int(_in_range(parse_numbers(prediction), low, high))
    normalised = normalise(prediction)
    return int(any(normalised == normalise(str(reference)) for reference in answer_eval))


def question_type_of(answer_eval: Sequence[Any]) -> str:
    """Numerical where the reference has a range, else String.

    InfoSeek's training file has no question types; Time and String are scored alike.
    """
    first = answer_eval[0] if answer_eval else None
    return "Numerical" if isinstance(first, Mapping) else "String"


def split_of(data_split: str) -> str:
    """ "unseen_question" or "unseen_entity", from a question's `data_split`."""
    return SPLITS[0] if data_split.endswith(SPLITS[0]) else SPLITS[1]


@dataclass(frozen=True, slots=True)
class InfoSeekScore:
    """Scores in percent, rounded to two decimals as the official toolkit prints them.

    Attributes:
        final: harmonic mean of the two splits' scores; None if a split has no question. (The
            official toolkit gives 0 there, which is no score of anything.)
        splits: per split: "score" over all its questions, and one per question type found in it.
        per_question: 0 or 1 for each data id.
    """

    final: float | None
    splits: dict[str, dict[str, float]]
    per_question: dict[str, int]


def score_dataset(
    predictions: Mapping[str, str], references: Mapping[str, Mapping[str, Any]]
) -> InfoSeekScore:
    """Score predictions by data id.

    Args:
        references: per data id "answer_eval", "question_type" and "data_split".

    Raises:
        ValueError: predictions and references are not for the same questions. (The official
            toolkit leaves missing predictions out of the mean; a partial score is no score.)
    """
    check_coverage(predictions, references)
    per_question: dict[str, int] = {}
    cells: dict[tuple[str, str], list[int]] = {}
    for data_id, reference in references.items():
        kind = reference["question_type"]
        value = score(predictions[data_id], reference["answer_eval"], kind)
        per_question[data_id] = value
        split = split_of(reference["data_split"])
        cells.setdefault((split, "score"), []).append(value)
        by_type = _TYPE_SCORES.get(kind.lower(), "score_string")
        cells.setdefault((split, by_type), []).append(value)
    splits = {
        split: {
            name: round(100 * sum(values) / len(values), 2)
            for (s, name), values in sorted(cells.items())
            if s == split
        }
        for split in SPLITS
        if (split, "score") in cells
    }
    return InfoSeekScore(
        final=harmonic_mean([splits[s]["score"] for s in SPLITS]) if len(splits) == 2 else None,
        splits=splits,
        per_question=per_question,
    )


def harmonic_mean(scores: Sequence[float]) -> float:
    """Harmonic mean, rounded to two decimals; a zero counts as 1e-12, as in the official code."""
    return round(len(scores) / sum(1 / (score or _ZERO) for score in scores), 2)


def parse_numbers(prediction: str) -> list[float]:
    """What the official parser reads from a prediction: one number, or two that are a range.

    A hyphen after a digit separates numbers; only the first two numbers count, and the second only
    if it is not smaller than the first; no number at all is the range [0, 0].
    """
    spaced = _HYPHEN_AFTER_DIGIT.sub(" - ", prediction)
    found = [float(n.replace(",", "").strip(".")) for n in _NUMBER.findall(spaced)[:2]]
    if not found:
        return [0.0, 0.0]
    return found if len(found) == 2 and found[0] <= found[1] else found[:1]


def _in_range(numbers: Sequence[float], low: float, high: float) -> bool:
    if all(low <= number <= high for number in numbers):
        return True
    if len(numbers) == 1:
        return False
    start, end = numbers
    overlap = max(0.0, min(end, high) - max(start, low))
    union = (end - start) + (high - low) + 2e-12 - overlap
    return overlap / union >= _MIN_IOU
