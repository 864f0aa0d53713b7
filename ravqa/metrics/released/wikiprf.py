"""Wiki-PRF, cqu-student/Wiki-PRF: a string reference must be a substring of the answer.

Numbers must lie within ten percent of `wikidata`; the range that InfoSeek gives is not used. So "1"
is right in "2013", "no" in "unknown", and a reference that cleans up to nothing is in everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ravqa.core.records import Question
from ravqa.metrics import evqa, infoseek
from ravqa.metrics.released.base import INFOSEEK, ReleasedRule, Source
from ravqa.metrics.released.infoseek_eval import check_numbers

_REPOSITORY = "cqu-student/Wiki-PRF"
_COMMIT = "06f33b7c3a0adb4e397c55bee862913f9d0bce97"


class Test(ReleasedRule):
    """The rule of the repository's test scripts."""

    name = "wikiprf.test"
    label = "Wiki-PRF"
    rule = "a string reference is a substring of the answer, or a number within 10 % of `wikidata`"
    forms = INFOSEEK
    source = Source(
        _REPOSITORY,
        _COMMIT,
        "test/answer_reward_utils.py, test/merge_json.py",
        "evaluate_example, eval",
    )
    published = "InfoSeek 42.8 (7B) and 39.0 (3B), README; E-VQA and OK-VQA: scorer not released"

    def problem(self, question: Question) -> str:
        """Return what is wrong with `answer_eval`, if anything."""
        if not question.answer_eval:
            return "no 'answer_eval'"
        for form in question.answer_eval:
            if isinstance(form, Mapping):
                if not isinstance(form.get("wikidata"), int | float):
                    return "a record in 'answer_eval' whose 'wikidata' is not a number"
            elif not form:
                return "an empty text in 'answer_eval'"
        return ""

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0."""
        if problem := self.problem(question):
            raise ValueError(problem)
        if any(isinstance(form, Mapping) for form in question.answer_eval):
            check_numbers(evqa.with_digits(text))
        cleaned = infoseek.normalise(evqa.normalise(text))
        return float(any(_right(cleaned, text, form) for form in question.answer_eval))


class Reward(Test):
    """The rule of the repository's training, which gives the same scores."""

    name = "wikiprf.reward"
    label = "Wiki-PRF, training reward"
    source = Source(_REPOSITORY, _COMMIT, "train/reward/answer_reward_utils.py", "evaluate_example")
    published = ""


def _right(cleaned: str, text: str, form: Any) -> bool:
    if not isinstance(form, Mapping):
        return infoseek.normalise(evqa.normalise(str(form))) in cleaned
    numbers = infoseek.parse_numbers(evqa.with_digits(text))
    value = float(form["wikidata"])
    return numbers != [0.0, 0.0] and infoseek.in_range(numbers, 0.9 * value, 1.1 * value)
