"""UltraRAG, OpenBMB/UltraRAG: its clean-up turns punctuation into spaces."""

from __future__ import annotations

import string
from abc import abstractmethod
from collections import Counter

from ravqa.core.records import Question
from ravqa.metrics.infoseek import without_articles
from ravqa.metrics.released.base import ALL, ReleasedRule, Source, texts

_MARKS = str.maketrans(dict.fromkeys(string.punctuation + "\u2018\u2019\u00b4", " "))
_TRUTHS = {"True": "yes", "False": "no"}


def normalise(text: str) -> str:
    """Apply its clean-up."""
    return without_articles(_TRUTHS.get(text, text).lower().translate(_MARKS))


class _OfTexts(ReleasedRule):
    """A score from the cleaned answer and all cleaned references."""

    forms = ALL
    source = Source(
        "OpenBMB/UltraRAG",
        "015e838c8935a51ade88df6bdaa91ad9522f64e9",
        "servers/evaluation/src/evaluation.py",
        "compute_metrics",
    )

    @abstractmethod
    def of_texts(self, prediction: str, references: list[str]) -> float:
        """Return the score, of texts that are cleaned up."""

    def of_text(self, question: Question, text: str) -> float:
        """Return the score."""
        return self.of_texts(normalise(text), [normalise(t) for t in texts(question)])


class Accuracy(_OfTexts):
    """Containment."""

    name = "ultrarag.acc"
    label = "UltraRAG, substring"
    rule = "a reference is a substring of the answer, both after its clean-up"

    def of_texts(self, prediction: str, references: list[str]) -> float:
        """Return 1 if a reference is inside; a blank answer is wrong."""
        return float(bool(prediction) and any(r in prediction for r in references))


class ExactMatch(_OfTexts):
    """Equality."""

    name = "ultrarag.em"
    label = "UltraRAG, exact match"
    rule = "a reference equals the answer, both after its clean-up"

    def of_texts(self, prediction: str, references: list[str]) -> float:
        """Return 1 if a reference is equal."""
        return float(prediction in references)


class StringEM(_OfTexts):
    """Share of equal references."""

    name = "ultrarag.stringem"
    label = "UltraRAG, share of references"
    rule = "share of the references that equal the answer, after its clean-up"

    def of_texts(self, prediction: str, references: list[str]) -> float:
        """Return the share."""
        return references.count(prediction) / len(references)


class CoverEM(_OfTexts):
    """Words covered."""

    name = "ultrarag.coverem"
    label = "UltraRAG, words covered"
    rule = "all words of a reference are among the answer's, in any order and number"

    def of_texts(self, prediction: str, references: list[str]) -> float:
        """Return 1 if a reference is covered."""
        words = set(prediction.split())
        return float(any(words.issuperset(r.split()) for r in references))


class F1(_OfTexts):
    """F1 of words."""

    name = "ultrarag.f1"
    label = "UltraRAG, F1"
    rule = "F1 of the words that answer and reference share, the best over references"

    def of_texts(self, prediction: str, references: list[str]) -> float:
        """Return the best F1."""
        given = Counter(prediction.split())
        return max(_f1(given, Counter(reference.split())) for reference in references)


def _f1(given: Counter[str], wanted: Counter[str]) -> float:
    common = (given & wanted).total()
    if not common:
        return 0.0
    precision, recall = common / given.total(), common / wanted.total()
    return 2 * precision * recall / (precision + recall)
