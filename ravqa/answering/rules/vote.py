"""Majority vote."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ravqa.answering.merging import Merge, merge_key
from ravqa.answering.rules.base import Case, PerPassage, first_best
from ravqa.core.records import Answer, Draft


class Vote(PerPassage):
    """The answer a with the largest |{k : y_k = a}|, the number of passages that it was read from.

    Answers are compared after the clean-up `merge`. Ties go to the better passage. An empty answer
    gets a vote only if all are empty. In the Selector/Answerer study "Self-bootstrapped Visual
    Language Models for KB-VQA", reading one passage at a time and voting was slightly better than
    one prompt with all passages.
    """

    class Config(PerPassage.Config):
        """Options.

        Attributes:
            merge: clean-up after which answers are compared (see `merge_key`).
        """

        merge: Merge = "vqa"

    config: Config

    def decide(self, case: Case, drafts: list[Draft]) -> Answer:
        """Return the answer with the most votes."""
        keys = [merge_key(draft.text, self.config.merge) for draft in drafts]
        votes = Counter(key for key in keys if key) or Counter(keys)
        scores = [float(votes[key]) for key in keys]
        counted = [replace(draft, score=score) for draft, score in zip(drafts, scores, strict=True)]
        return self.chosen(first_best(scores), counted)
