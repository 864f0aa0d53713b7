"""BERAG, EriChen0615/BERAG: E-VQA's rule on texts that are first read as literals."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ravqa.core.records import Question
from ravqa.metrics.evqa import QUESTION_TYPES
from ravqa.metrics.judges.asking import Asked
from ravqa.metrics.released.base import INFOSEEK, JudgedRule, Source
from ravqa.metrics.released.evqa import EVQARule

_REPOSITORY = "EriChen0615/BERAG"
_COMMIT = "df3f10dc74ed1ed0750fb8f520a8037399217af3"
_AUTOMATIC = "automatic"


def decoded(text: str) -> str:
    """Return a text as the released code reads it: as JSON, else as a Python literal, if it is one.

    "1,234" is two numbers, of which the first counts; "5." is 5.0; quotes fall off; None is blank.
    """
    for read in (json.loads, ast.literal_eval):
        try:
            return _text(read(text.strip()))
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return text.strip()


def _text(value: Any) -> str:
    while isinstance(value, list | tuple):
        value = value[0] if value else None
    return "" if value is None else str(value).strip()


class Evqa(EVQARule):
    """Its E-VQA score."""

    name = "berag.evqa"
    label = "BERAG, E-VQA"
    rule = "as evqa.official, where answers and references that are literals are read as such"
    source = Source(
        _REPOSITORY,
        _COMMIT,
        "src/eval/evaluate_evqa_predictions.py",
        "prepare_eval_rows, score_prepared_row, build_report",
    )

    def problem(self, question: Question) -> str:
        """Return nothing: an error counts as wrong."""
        return "" if question.answers else "no answers"

    def settled(self, question: Question, text: str) -> float | None:
        """Return the official score; 0 for a blank answer, and where the official code stops."""
        answer, asked = decoded(text), _decoded(question)
        if not answer or not asked.answers:
            return 0.0
        try:
            return super().settled(asked, answer)
        except ValueError:
            return 0.0

    def asked(self, question: Question, text: str) -> Sequence[Asked]:
        """Return the read prediction with each reference."""
        return super().asked(_decoded(question), decoded(text))


class InfoSeekBem(EVQARule):
    """Its InfoSeek score by E-VQA's rule, by which every number is wrong."""

    name = "berag.infoseek_bem"
    label = "BERAG, InfoSeek by a judge"
    rule = "as evqa.official, of the texts in `answer_eval`; numbers are always wrong"
    forms = INFOSEEK
    source = Source(
        _REPOSITORY, _COMMIT, "src/evaluation/infoseek_bem_eval.py", "process_single_example"
    )

    aggregate = JudgedRule.aggregate
    problem = JudgedRule.problem

    def settled(self, question: Question, text: str) -> float | None:
        """Return the official score; 0 where the official code stops, as at numbers."""
        if not all(isinstance(form, str) for form in question.answer_eval):
            return 0.0
        try:
            return super().settled(_of_texts(question), text)
        except ValueError:
            return 0.0

    def asked(self, question: Question, text: str) -> Sequence[Asked]:
        """Return the prediction with each text."""
        return super().asked(_of_texts(question), text)

    summary = JudgedRule.summary


def _decoded(question: Question) -> Question:
    kind = question.question_type
    references = (decoded(reference).replace("\n", "").strip() for reference in question.answers)
    return replace(
        question,
        answers=tuple(reference for reference in references if reference),
        question_type=kind if kind in QUESTION_TYPES else _AUTOMATIC,
    )


def _of_texts(question: Question) -> Question:
    return replace(question, answers=question.answer_eval, question_type=_AUTOMATIC)
