"""The answers that a reader is trained to give: RA-VQA's rule (Lin and Byrne 2022, 2023).

A reader is to answer from the passages that it is shown. So the target of a prompt is the answer
that most annotators gave of those that its passages hold. Where they hold none, it is the answer
that most annotators gave.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from ravqa.core.records import Passage, Question
from ravqa.core.settings import Strict, Text
from ravqa.metrics.evqa import single_answers
from ravqa.metrics.prrecall import DEFAULT_RULE, Rule, answer_ranks


class TargetConfig(Strict):
    """Which answers are targets.

    Attributes:
        contains: what it means that a passage holds an answer; see `ravqa.metrics.prrecall`.
        min_agreeing: answers that fewer annotators gave are no targets.
        exclude: answers that this regular expression matches as a whole are no targets, such as the
            placeholders of answers that are not known.
        unsupported: keep or drop prompts with passages of which none holds an answer.
    """

    contains: Rule = DEFAULT_RULE
    min_agreeing: int = Field(default=1, ge=1)
    exclude: Text | None = None
    unsupported: Literal["keep", "drop"] = "keep"

    @field_validator("exclude")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as e:
            raise ValueError(f"not a regular expression: {e}") from None
        return value


def candidates(question: Question, config: TargetConfig) -> list[str]:
    """Return the answers that can be targets, the most frequent first; ties in the data's order.

    For a question with a right choice, that is the only one.
    """
    if question.right_choice is not None:
        return [question.right_choice]
    counts = Counter(answer.strip() for answer in question.answers)
    unwanted = re.compile(config.exclude) if config.exclude is not None else None
    return [
        answer
        for answer, count in counts.most_common()
        if answer and count >= config.min_agreeing and not (unwanted and unwanted.fullmatch(answer))
    ]


def target(
    question: Question, passages: Sequence[Passage], config: TargetConfig
) -> tuple[str, bool] | None:
    """Return the target of a prompt with some passages, and whether one of them holds it.

    The answers of a question with several (E-VQA's multi_answer) are joined by commas; a passage
    holds them if it holds one.

    Returns:
        None if no answer can be the target.
    """
    wanted = candidates(question, config)
    if not wanted:
        return None
    texts = [passage.content for passage in passages]
    for answer in wanted:
        parts = single_answers([answer], question.question_type)
        if answer_ranks(texts, parts, config.contains):
            return ", ".join(parts), True
    return ", ".join(single_answers(wanted[:1], question.question_type)), False
