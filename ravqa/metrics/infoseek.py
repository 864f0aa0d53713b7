"""The InfoSeek score as the official toolkit computes it.

Definition: edchengg/infoseek_eval, infoseek_eval.py. Every question scores 0 or 1:

- String and Time: exact match of normalised text with any string of `answer_eval` (the tolerance of
  a year for Time is in that list; the code has none);
- Numerical: the one or two numbers read from the prediction must lie in the reference range, or
  the predicted range must overlap it with an intersection over union of at least 0.5.

A split's score is the mean over its questions in percent, rounded to two decimals; the final score
is the harmonic mean of the rounded scores of unseen_question and unseen_entity. The quirks of the
number parser are kept: ".5" is 5, "12.5%" is 12.5, a prediction without digits is the range [0, 0].
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ravqa.core.records import Question
from ravqa.metrics.base import AnswerMetric, AnswerRecord, Id, Submission, percent
from ravqa.metrics.statistics.harmonic import harmonic_bootstrap, harmonic_paired_test
from ravqa.metrics.statistics.intervals import Interval, PairedTest

if TYPE_CHECKING:
    from ravqa.metrics.judges.base import Judge

SPLITS = ("unseen_question", "unseen_entity")
# the official toolkit's names for a split's scores by question type; all others are strings
_TYPE_SCORES = {"time": "score_time", "numerical": "score_num"}
_SCORES = ("score", "score_time", "score_num", "score_string")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(
    r"""
    [-+]? \.?                # a leading dot is matched, and dropped below
    \d+ (?:,\d{3})* \.? \d*  # digits, thousands in groups of three, decimals
    (?:[eE][-+]?\d+)?
    """,
    re.VERBOSE,
)
_TINY = 1e-12  # the official code adds it to lengths, and uses it for a split score of 0
_MIN_IOU = 0.5 - _TINY


def normalise(text: str) -> str:
    """Lower-case, delete ASCII punctuation, drop articles, collapse spaces."""
    return without_articles(without_punctuation(text))


def without_punctuation(text: str) -> str:
    """Lower-case and delete ASCII punctuation: the first half of `normalise`."""
    return text.lower().translate(_PUNCTUATION)


def without_articles(text: str) -> str:
    """Drop articles and collapse spaces: the second half of `normalise`."""
    return " ".join(_ARTICLES.sub(" ", text).split())


def infoseek_score(prediction: str, answer_eval: Sequence[Any], question_type: str) -> int:
    """Return 1 if the prediction is right, else 0.

    Args:
        answer_eval: accepted strings; for Numerical one mapping with "range": [low, high].
        question_type: String, Time or Numerical; case is ignored.

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
        return int(in_range(parse_numbers(prediction), low, high))
    normalised = normalise(prediction)
    return int(any(normalised == normalise(str(reference)) for reference in answer_eval))


def infoseek_scores(
    predictions: Iterable[Mapping[str, Any]],
    references: Iterable[Mapping[str, Any]],
    question_types: Iterable[Mapping[str, Any]],
    *,
    strict: bool = True,
) -> dict[str, Any]:
    """Return the official scores of predictions; the arguments are the official files' records.

    Args:
        predictions: "data_id", "prediction".
        references: "data_id", "answer_eval", "data_split".
        question_types: "data_id", "question_type" for every reference.
        strict: True scores every reference: a missing prediction is wrong, and the result says how
            many were missing. False is the official toolkit: the mean is over the given
            predictions, unknown ids are ignored, a repeated one counts each time.

    Returns:
        `final_score`, `unseen_question_score` and `unseen_entity_score`, each of the latter with
        `score`, `score_time`, `score_num`, `score_string`: percent, rounded to two decimals.
        Without questions, None (not strict: 0, as in the official toolkit). If predictions are
        missing and `strict`, also `missing`: their number.

    Raises:
        ValueError: a reference without question type; `strict` and a prediction whose data_id is
            unknown or occurs twice.
    """
    types = {record["data_id"]: str(record["question_type"]) for record in question_types}
    by_id = {record["data_id"]: record for record in references}
    untyped = by_id.keys() - types.keys()
    if untyped:
        raise ValueError(f"{len(untyped)} references have no question type, such as {min(untyped)}")
    rows: list[tuple[str, str, float]] = []
    seen: set[str] = set()
    for record in predictions:
        data_id = record["data_id"]
        reference = by_id.get(data_id)
        if strict and (reference is None or data_id in seen):
            what = "unknown" if reference is None else "predicted twice"
            raise ValueError(f"the data_id {data_id!r} is {what}")
        if reference is None:
            continue
        seen.add(data_id)
        value = infoseek_score(record["prediction"], _as_list(reference), types[data_id])
        rows.append((reference["data_split"], types[data_id], value))
    missing = by_id.keys() - seen if strict else set()
    rows += [(by_id[i]["data_split"], types[i], 0) for i in missing]
    scores = aggregate(rows, empty=None if strict else 0.0)
    return {**scores, "missing": len(missing)} if missing else scores


def aggregate(
    rows: Iterable[tuple[str, str, float]], *, empty: float | None = None
) -> dict[str, Any]:
    """Return the official scores from (data_split, question_type, 0 or 1) of every question.

    Args:
        empty: score without questions.
    """
    cells: dict[str, dict[str, list[float]]] = {s: {name: [] for name in _SCORES} for s in SPLITS}
    for data_split, kind, value in rows:
        split = cells[_split_of(data_split)]
        split["score"].append(value)
        split[_TYPE_SCORES.get(kind.lower(), "score_string")].append(value)
    scores = {
        f"{split}_score": {
            name: round(sum(values) / len(values) * 100, 2) if values else empty
            for name, values in by_name.items()
        }
        for split, by_name in cells.items()
    }
    both = [split["score"] for split in scores.values()]
    known = [score for score in both if score is not None]
    return {"final_score": harmonic_mean(known) if len(known) == len(both) else None, **scores}


def _split_of(data_split: str) -> str:
    """Return which of SPLITS a question belongs to, as in the official code."""
    return SPLITS[0] if data_split.endswith(SPLITS[0]) else SPLITS[1]


def _as_list(reference: Mapping[str, Any]) -> Sequence[Any]:
    value = reference["answer_eval"]  # the official toolkit also takes a single mapping
    return [value] if isinstance(value, Mapping) else value


def question_type_of(answer_eval: Sequence[Any]) -> str:
    """Return Numerical if the reference has a range, else String.

    InfoSeek's training file has no question types; Time and String are scored alike.
    """
    first = answer_eval[0] if answer_eval else None
    return "Numerical" if isinstance(first, Mapping) else "String"


def range_problem(question_type: str, answer_eval: Sequence[Any]) -> str:
    """Return what is wrong with an InfoSeek question's answer_eval; "" if nothing."""
    objects = [form for form in answer_eval if isinstance(form, dict)]
    if question_type.lower() != "numerical":
        return f"a {question_type} question needs texts in 'answer_eval'" if objects else ""
    bounds = objects[0].get("range") if objects and len(answer_eval) == 1 else None
    right = (
        isinstance(bounds, list)
        and len(bounds) == 2
        and all(
            isinstance(bound, int | float) and not isinstance(bound, bool) and math.isfinite(bound)
            for bound in bounds
        )
    )
    return "" if right else 'a Numerical question needs [{"range": [low, high]}]'


def harmonic_mean(scores: Sequence[float]) -> float:
    """Return the harmonic mean to two decimals; a zero counts as 1e-12 (as officially)."""
    return round(len(scores) / sum(1 / (score or _TINY) for score in scores), 2)


def parse_numbers(prediction: str) -> list[float]:
    """Parse a prediction like the official parser: one number, or two that are a range.

    A hyphen after a digit separates numbers; only the first two numbers count, and the second only
    if it is not smaller than the first; no number at all is the range [0, 0]. The official parser
    stops with an error at a sign before a leading dot and another dot ("-.5.3"); here it is -0.5.
    """
    found = [_number(text) for text in _number_texts(prediction)[:2]]
    if not found:
        return [0.0, 0.0]
    return found if len(found) == 2 and found[0] <= found[1] else found[:1]


def numbers_stop(prediction: str) -> str:
    """Return a number at which the official parser stops with an error, such as "-.5.3"; or ""."""
    found = (text.strip(".") for text in _number_texts(prediction))
    return next((text for text in found if text.count(".") > 1), "")


def _number_texts(prediction: str) -> list[str]:
    spaced = "".join(
        # str.isdigit, as in the official code: it knows more digits ("m²-5") than the pattern
        " - " if mark == "-" and i and prediction[i - 1].isdigit() else mark
        for i, mark in enumerate(prediction)
    )
    return [text.replace(",", "") for text in _NUMBER.findall(spaced)]


def _number(text: str) -> float:
    text = text.strip(".")
    return float(text[: text.rindex(".")] if text.count(".") > 1 else text)


def in_range(numbers: Sequence[float], low: float, high: float) -> bool:
    """Return whether numbers as of `parse_numbers` lie in a range, or overlap it by half."""
    if all(low <= number <= high for number in numbers):
        return True
    if len(numbers) == 1:
        return False
    start, end = numbers
    low, high = min(low, high), max(low, high)
    overlap = max(0.0, min(end, high) - max(start, low))
    union = (end - start + _TINY) + (high - low + _TINY) - overlap
    return overlap / union >= _MIN_IOU


def _kind(question: Question) -> str:
    return question.question_type or question_type_of(question.answer_eval)


class InfoSeek(AnswerMetric):
    """The InfoSeek score as an answer metric: a harmonic mean over two splits."""

    name = "infoseek"
    label = "InfoSeek score"
    forms = frozenset({"infoseek"})
    rule = (
        "exact match of strings, or a number in the reference's range; harmonic mean of unseen "
        "questions and unseen entities (edchengg/infoseek_eval)"
    )

    def score(self, question: Question, record: AnswerRecord, judge: Judge | None = None) -> float:
        """Return `infoseek_score` of the answer; without a type, a range makes it Numerical.

        Raises:
            ValueError: as `infoseek_score`.
        """
        kind = _kind(question)
        return float(infoseek_score(record.answer or "", question.answer_eval, kind))

    def problem(self, question: Question) -> str:
        """Return what is wrong with `answer_eval`, if anything."""
        if not question.answer_eval:
            return "no 'answer_eval'"
        return range_problem(_kind(question), question.answer_eval)

    def summary(self, questions: Sequence[Question], scores: Sequence[float]) -> dict[str, Any]:
        """Return the final score, the scores of both splits, and the mean over all questions."""
        found = aggregate(
            (q.split or "", _kind(q), score) for q, score in zip(questions, scores, strict=True)
        )
        return {
            "score": found["final_score"],
            "splits": {s: found[f"{s}_score"] for s in SPLITS},
            "mean": percent(scores),
        }

    def settings(self, judge: Judge | None = None) -> dict[str, Any]:
        """Return that missing predictions are wrong, which the official toolkit leaves out."""
        return {"strict": True}

    def interval(
        self,
        scores: Sequence[float],
        splits: Sequence[str],
        clusters: Sequence[Hashable],
        *,
        seed: int,
    ) -> Interval:
        """Return the harmonic mean with its interval; the plain mean where one split is absent."""
        groups = [_split_of(split) for split in splits]
        if len(set(groups)) < len(SPLITS):
            return super().interval(scores, splits, clusters, seed=seed)
        return harmonic_bootstrap(scores, groups, clusters, seed=seed)

    def paired_test(
        self,
        first: Mapping[Id, float],
        second: Mapping[Id, float],
        splits: Mapping[Id, str],
        clusters: Mapping[Id, Hashable],
        *,
        seed: int,
    ) -> PairedTest:
        """Compare harmonic means; plain means where one split is absent."""
        groups = {q: _split_of(splits[q]) for q in first}
        if len(set(groups.values())) < len(SPLITS):
            return super().paired_test(first, second, splits, clusters, seed=seed)
        return harmonic_paired_test(first, second, groups, clusters, seed=seed)

    def submission(self, answers: Mapping[Id, str]) -> Submission:
        """Return the official toolkit's JSON lines: "data_id" and "prediction"."""
        lines = [
            json.dumps({"data_id": q, "prediction": answer}, ensure_ascii=False)
            for q, answer in answers.items()
        ]
        return Submission(".jsonl", "\n".join(lines) + "\n")
