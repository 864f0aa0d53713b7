"""RA-VQA's rule: the most probable pair of a passage and its answer."""

from __future__ import annotations

from ravqa.answering.rules.base import Case, WeighsPassages, first_best, known, scored
from ravqa.core.records import Answer, Draft
from ravqa.readers.base import Abilities


class JointMax(WeighsPassages):
    """The y_k with the largest

        log p(z_k | x) + log p(y_k | x, z_k) / |y_k|

    as in RA-VQA (Lin and Byrne 2022, arXiv 2210.03809), whose prior is the softmax of the retrieval
    scores at temperature 1. Length normalisation is as in its code
    (LinWeizheDragon/Retrieval-Augmented-Visual-Question-Answering, rag_model_blip.py). Equal
    answers are not merged: the rule is a maximum, not a sum.
    """

    def problem(self, reader: Abilities) -> str:
        """Require log-probabilities if there can be several prompts."""
        return "compares log-probabilities" if self.chooses and not reader.gives_log_probs else ""

    def decide(self, case: Case, drafts: list[Draft]) -> Answer:
        """Return the answer of the most probable pair."""
        scores = [
            log_prior + known(draft) / max(1, draft.tokens)
            for draft, log_prior in zip(drafts, case.log_priors, strict=True)
        ]
        return self.chosen(first_best(scores), scored(drafts, scores, case.log_priors))
