"""FlashRAG, RUC-NLPIR/FlashRAG: exact match, substring, and overlap of words."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter

from ravqa.core.records import Question
from ravqa.metrics.infoseek import normalise
from ravqa.metrics.released.base import ALL, ReleasedRule, Source, texts

_VERDICTS = {"yes", "no", "noanswer"}


def _source(function: str) -> Source:
    return Source(
        "RUC-NLPIR/FlashRAG",
        "1ee524901aa3daf009f97b7a31e7a1b58eee8206",
        "flashrag/evaluator/metrics.py",
        function,
    )


class _OfTexts(ReleasedRule):
    """The best score over the references."""

    forms = ALL

    @abstractmethod
    def of_pair(self, prediction: str, reference: str) -> float:
        """Return the score against one reference, both after SQuAD's clean-up."""

    def of_text(self, question: Question, text: str) -> float:
        """Return the best score over the references."""
        given = normalise(text)
        references = {normalise(reference) for reference in texts(question)}
        return max(self.of_pair(given, reference) for reference in references)


class ExactMatch(_OfTexts):
    """Equality."""

    name = "flashrag.em"
    label = "FlashRAG, exact match"
    rule = "a reference equals the answer, both after SQuAD's clean-up"
    source = _source("ExactMatch")

    def of_pair(self, prediction: str, reference: str) -> float:
        """Return 1 if both are equal."""
        return float(prediction == reference)


class Accuracy(_OfTexts):
    """Containment."""

    name = "flashrag.acc"
    label = "FlashRAG, substring"
    rule = "a reference is a substring of the answer, both after SQuAD's clean-up"
    source = _source("Sub_ExactMatch")

    def of_pair(self, prediction: str, reference: str) -> float:
        """Return 1 if the reference is inside."""
        return float(reference in prediction)


class _Overlap(_OfTexts):
    """Scores from the words that answer and reference share."""

    @abstractmethod
    def of_counts(self, common: int, given: int, wanted: int) -> float:
        """Return the score from the number of common words (at least 1) and those of each side."""

    def of_pair(self, prediction: str, reference: str) -> float:
        """Return the score; 0 if one side is yes, no or noanswer and they differ."""
        if prediction != reference and {prediction, reference} & _VERDICTS:
            return 0.0
        given, wanted = Counter(prediction.split()), Counter(reference.split())
        common = (given & wanted).total()
        return self.of_counts(common, given.total(), wanted.total()) if common else 0.0


class F1(_Overlap):
    """F1 of words."""

    name = "flashrag.f1"
    label = "FlashRAG, F1"
    rule = "F1 of the words that answer and reference share, the best over references"
    source = _source("F1_Score")

    def of_counts(self, common: int, given: int, wanted: int) -> float:
        """Return the harmonic mean of precision and recall."""
        precision, recall = common / given, common / wanted
        return 2 * precision * recall / (precision + recall)


class Precision(_Overlap):
    """Precision of words."""

    name = "flashrag.precision"
    label = "FlashRAG, precision"
    rule = "share of the answer's words that are in the reference, the best over references"
    source = _source("Precision_Score")

    def of_counts(self, common: int, given: int, wanted: int) -> float:
        """Return the share of the answer's words."""
        return common / given


class Recall(_Overlap):
    """Recall of words."""

    name = "flashrag.recall"
    label = "FlashRAG, recall"
    rule = "share of the reference's words that are in the answer, the best over references"
    source = _source("Recall_Score")

    def of_counts(self, common: int, given: int, wanted: int) -> float:
        """Return the share of the reference's words."""
        return common / wanted
