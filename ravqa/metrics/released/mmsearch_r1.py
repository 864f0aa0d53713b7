"""MMSearch-R1, EvolvingLMMs-Lab/multimodal-search-r1: its training reward and the checks in it.

Without <answer> the reward is 0. The paper's table is by a language model and is not released.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ravqa.core.records import Question
from ravqa.metrics.base import percent
from ravqa.metrics.infoseek import normalise
from ravqa.metrics.released.base import ALL, ReleasedRule, Source, texts
from ravqa.metrics.released.tags import ANSWER, last_answer

_REPOSITORY = "EvolvingLMMs-Lab/multimodal-search-r1"
_COMMIT = "583c6b49bb6c99db81aab56f64dbbfb8c8e1a9a3"
_FILE = "mmsearch_r1/utils/reward_score_mm/mmsearch_r1_score.py"
_FORM = re.compile(r"<reason>.*</reason>.*<answer>.*</answer>", re.DOTALL)
_TAGS = ("<reason>", "</reason>", "<answer>", "</answer>")
_FORM_WEIGHT = 0.1
_RIGHT = 0.1001  # rewards above it are right


class EmCheck(ReleasedRule):
    """Its exact match, on the prediction as it is."""

    name = "mmsearch_r1.em_check"
    label = "MMSearch-R1, exact match"
    rule = "a reference equals the answer, both after SQuAD's clean-up"
    forms = ALL
    source = Source(_REPOSITORY, _COMMIT, _FILE, "em_check")

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0."""
        return float(normalise(text) in {normalise(reference) for reference in texts(question)})


class SubEmCheck(EmCheck):
    """Its substring match, on the prediction as it is."""

    name = "mmsearch_r1.subem_check"
    label = "MMSearch-R1, substring"
    rule = "a reference is a substring of the answer, both after SQuAD's clean-up"
    source = Source(_REPOSITORY, _COMMIT, _FILE, "subem_check")

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0."""
        given = normalise(text)
        return float(any(normalise(reference) in given for reference in texts(question)))


class _Reward(ReleasedRule):
    """A check of what the last <answer> holds, and a tenth for the form of the turn."""

    forms = ALL
    wants = ANSWER
    aggregate = "mean reward; `right`: share of rewards above 0.1001"
    check: ReleasedRule

    def of_text(self, question: Question, text: str) -> float:
        """Return the reward of one turn without a search."""
        answer = last_answer(text)
        right = 0.0 if answer is None else self.check.of_text(question, answer)
        well_formed = (
            all(text.count(tag) == 1 for tag in _TAGS)
            and _FORM.fullmatch(text.strip()) is not None
            and "search>" not in text
        )
        return (1 - _FORM_WEIGHT) * right + _FORM_WEIGHT * well_formed

    def summary(self, questions: Sequence[Question], scores: Sequence[float]) -> dict[str, Any]:
        """Return the mean reward, and the share of questions that validation counts as right."""
        rights = [float(score > _RIGHT) for score in scores]
        return {"score": percent(scores), "right": percent(rights)}


class RewardEm(_Reward):
    """The reward by exact match."""

    name = "mmsearch_r1.reward_em"
    label = "MMSearch-R1, reward"
    rule = "0.9 if <answer> holds a reference (exact match), 0.1 for the form of the turn"
    source = Source(_REPOSITORY, _COMMIT, _FILE, "compute_score, reward_mode EM")
    check = EmCheck()


class RewardSubEm(_Reward):
    """The reward by substring."""

    name = "mmsearch_r1.reward_subem"
    label = "MMSearch-R1, reward, substring"
    rule = "0.9 if <answer> contains a reference, 0.1 for the form of the turn"
    source = Source(_REPOSITORY, _COMMIT, _FILE, "compute_score, reward_mode SubEM")
    check = SubEmCheck()
