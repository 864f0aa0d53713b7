"""The official E-VQA score, google-research/google-research, and who averages what.

ReflectiVA, ReAG and mKG-RAG call `single_hop` all but two-hop questions; EchoSight, OMGM and
WikiSeeker have no two-hop questions at all. In the paper, single-hop is templated and automatic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ravqa.core.records import Question
from ravqa.metrics.base import percent
from ravqa.metrics.evqa import BETWEEN, EVQAScore, exact_match, type_of
from ravqa.metrics.judges.asking import Asked
from ravqa.metrics.released.base import EVQA, JudgedRule, Source


class EVQARule(JudgedRule):
    """What rules share that call the official functions."""

    forms = EVQA
    aggregate = (
        "mean over all questions, all but two-hop ones (`single_hop`), two-hop ones, and the "
        "paper's single-hop ones (templated and automatic)"
    )

    def settled(self, question: Question, text: str) -> float | None:
        """Return 1 for an exact match with a reference, else None."""
        found = [exact_match(text, r, type_of(question)) for r in question.answers]
        return 1.0 if any(found) else None

    def asked(self, question: Question, text: str) -> Sequence[Asked]:
        """Return the prediction with each reference."""
        return [
            Asked(question.question, reference.replace(BETWEEN, ","), text)
            for reference in question.answers
        ]

    problem = EVQAScore.problem

    def summary(self, questions: Sequence[Question], scores: Sequence[float]) -> dict[str, Any]:
        """Return the mean over all questions, and over what others call single-hop and two-hop."""

        def mean(kinds: set[str]) -> float | None:
            found = [s for q, s in zip(questions, scores, strict=True) if type_of(q) in kinds]
            return percent(found) if found else None

        return {
            "score": percent(scores),
            "single_hop": mean({"templated", "automatic", "multi_answer"}),
            "two_hop": mean({"2_hop"}),
            "single_hop_of_the_paper": mean({"templated", "automatic"}),
        }


class Official(EVQARule):
    """The official rule."""

    name = "evqa.official"
    label = "E-VQA, official code"
    rule = "a reference matches exactly, or the judge (BEM) accepts the answer for it"
    source = Source(
        "google-research/google-research",
        "5b09c22d73a9d35eb6c5d2a99b95677a45053466",
        "encyclopedic_vqa/evaluation_utils.py",
        "evaluate_example",
    )
    published = (
        "PaLI 13.0, PaLM with Lens 48.8 (README); by the same functions ReflectiVA, OMGM, mKG-RAG, "
        "EchoSight 41.8"
    )
