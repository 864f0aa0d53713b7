"""The answer that is most probable over all passages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ravqa.answering.merging import merge_key
from ravqa.answering.priors import log_sum
from ravqa.answering.rules.base import Case, PerPassage, first_best, known, scored
from ravqa.core.records import Answer, Draft
from ravqa.readers.base import Ability
from ravqa.readers.cached import CachedReader


class Marginal(PerPassage):
    """The answer a with the largest P(a), where Y_a are the different generations that say a:

        thorough:  P(a) = sum of p(z_k | x) p(y | x, z_k)  over y in Y_a and all k
        fast:      P(a) = sum of p(z_k | x) p(y_k | x, z_k)  over the k with y_k in Y_a

    These are RAG's two ways of decoding (Lewis et al. 2020, arXiv 2005.11401, section 2.5): `fast`
    takes p(y | x, z_k) for 0 where passage k gave another generation, and costs no more than the K
    generations; `thorough` has the reader score every different generation under every passage, at
    most K x K scores. Generations say the same if their short answers are so after the clean-up
    `merge`; the likeliest of them is the answer. Probabilities are not normalised by length, since
    they are summed.
    """

    name = "marginal"

    @property
    def needs(self) -> dict[Ability, str]:
        """Probabilities of the generations, or of any text."""
        if not self.compares:
            return {}
        if self.config.marginal == "thorough":
            return {"score": "with answering.marginal thorough scores answers under every passage"}
        return {"log_probs": "adds up the probabilities of answers"}

    def decide(
        self, cases: Sequence[Case], drafts: Sequence[list[Draft]], reader: CachedReader
    ) -> list[Answer]:
        """From each question's drafts to its answer."""
        if self.config.marginal == "fast":
            return super().decide(cases, drafts, reader)
        texts = [dict.fromkeys(map(_text, own)) if len(own) > 1 else {} for own in drafts]
        asked = [
            (prompt, text)
            for case, own in zip(cases, texts, strict=True)
            for text in own
            for prompt in case.prompts
        ]
        # All questions' scores in one call: the reader makes its batches of them.
        scores = iter(reader.score([prompt for prompt, _ in asked], [text for _, text in asked]))
        answers = []
        for case, own, different in zip(cases, drafts, texts, strict=True):
            joint = {t: [p + next(scores) for p in case.log_priors] for t in different}
            answers.append(self._best(case, own, joint) if joint else self._only(own))
        return answers

    def _decide(self, case: Case, drafts: list[Draft]) -> Answer:
        nothing = [-math.inf] * len(drafts)
        joint = {_text(draft): list(nothing) for draft in drafts}
        for k, (draft, log_prior) in enumerate(zip(drafts, case.log_priors, strict=True)):
            joint[_text(draft)][k] = log_prior + known(draft)
        return self._best(case, drafts, joint)

    def _best(
        self, case: Case, drafts: list[Draft], joint: Mapping[str, Sequence[float]]
    ) -> Answer:
        """The best answer, from log p(z_k | x) p(y | x, z_k) of each generation y, per passage."""
        said = {_text(draft): merge_key(draft.text, self.config.merge) for draft in drafts}
        rows: dict[str, list[Sequence[float]]] = {}
        for text, row in joint.items():
            rows.setdefault(said[text], []).append(row)
        totals = {answer: log_sum([v for row in own for v in row]) for answer, own in rows.items()}
        scores = [totals[said[_text(draft)]] for draft in drafts]
        winner = said[_text(drafts[first_best(scores)])]
        posteriors = [
            math.exp(log_sum(column) - totals[winner]) for column in zip(*rows[winner], strict=True)
        ]
        best = first_best(
            [
                log_sum(joint[_text(draft)]) if said[_text(draft)] == winner else -math.inf
                for draft in drafts
            ]
        )
        weighed = [
            replace(draft, posterior=posterior)
            for draft, posterior in zip(
                scored(drafts, scores, case.log_priors), posteriors, strict=True
            )
        ]
        return self._chosen(best, weighed, log_prob=totals[winner])


def _text(draft: Draft) -> str:
    # Readers score a text without the spaces around it.
    return draft.raw.strip()
