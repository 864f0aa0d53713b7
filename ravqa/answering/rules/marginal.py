"""The answer that is most probable over all passages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ravqa.answering.merging import Merge, merge_key
from ravqa.answering.priors import log_sum
from ravqa.answering.rules.base import Case, WeighsPassages, first_best, known, scored
from ravqa.core.errors import PromptError
from ravqa.core.outcomes import Failure, first_failure
from ravqa.core.records import Answer, Draft
from ravqa.readers.base import Abilities
from ravqa.readers.cached import CachedReader


class Marginal(WeighsPassages):
    """The answer a with the largest P(a), where Y_a is the set of generations that give a:

        thorough:  P(a) = sum of p(z_k | x) p(y | x, z_k)  over y in Y_a and all k
        fast:      P(a) = sum of p(z_k | x) p(y_k | x, z_k)  over the k with y_k in Y_a

    These are RAG's two ways of decoding (Lewis et al. 2020, arXiv 2005.11401, section 2.5). `fast`
    sets p(y | x, z_k) to 0 if passage k gave another generation, and needs only the K generations.
    `thorough` has the reader score every distinct generation under every passage: at most K x K
    scores. Generations give the same answer if their short answers are equal after the clean-up
    `merge`; the most probable of them is returned. Probabilities are summed, and therefore not
    normalised by length.
    """

    class Config(WeighsPassages.Config):
        """Options.

        Attributes:
            marginal: "fast" counts an answer under the passages that it was read from, "thorough"
                scores every answer under every passage.
            merge: clean-up after which answers are compared (see `merge_key`).
        """

        marginal: Literal["fast", "thorough"] = "fast"
        merge: Merge = "vqa"

    config: Config

    def problem(self, reader: Abilities) -> str:
        """Require probabilities of generations (fast) or of any text (thorough)."""
        if not self.chooses:
            return ""
        if self.config.marginal == "thorough":
            needed = "with answering.marginal thorough scores answers under every passage"
            return "" if reader.scores_answers else needed
        return "" if reader.gives_log_probs else "adds up the probabilities of answers"

    @property
    def asks_once(self) -> bool:
        """Whether only what was generated is weighed."""
        return self.config.marginal == "fast"

    def answer(self, cases: Sequence[Case], reader: CachedReader) -> list[Answer | Failure]:
        """Return one answer per question, in order."""
        if self.config.marginal == "fast":
            return super().answer(cases, reader)
        drafts = self.drafts(cases, reader)
        texts = [
            dict.fromkeys(map(_text, own)) if not isinstance(own, Failure) and len(own) > 1 else {}
            for own in drafts
        ]
        asked = [
            (prompt, text)
            for case, own in zip(cases, texts, strict=True)
            for text in own
            for prompt in case.prompts
        ]
        # One call for all questions, so that the reader can form batches.
        scores = iter(reader.score([prompt for prompt, _ in asked], [text for _, text in asked]))
        answers: list[Answer | Failure] = []
        for case, own, different in zip(cases, drafts, texts, strict=True):
            if isinstance(own, Failure):
                answers.append(own)
            elif different:
                found = {text: [next(scores) for _ in case.prompts] for text in different}
                answers.append(self._thorough(case, own, found))
            else:
                answers.append(self.decided(case, own))
        return answers

    def _thorough(
        self, case: Case, drafts: list[Draft], scores: Mapping[str, Sequence[float | Failure]]
    ) -> Answer | Failure:
        joint: dict[str, list[float]] = {}
        for text, row in scores.items():
            for log_prior, score in zip(case.log_priors, row, strict=True):
                if isinstance(score, Failure):
                    return first_failure(s for own in scores.values() for s in own) or score
                joint.setdefault(text, []).append(log_prior + score)
        try:
            return self._best(case, drafts, joint)
        except PromptError as e:
            return Failure.of(e)

    def decide(self, case: Case, drafts: list[Draft]) -> Answer:
        """Return the most probable answer, counting the passages that each was read from."""
        nothing = [-math.inf] * len(drafts)
        joint = {_text(draft): list(nothing) for draft in drafts}
        for k, (draft, log_prior) in enumerate(zip(drafts, case.log_priors, strict=True)):
            joint[_text(draft)][k] = log_prior + known(draft)
        return self._best(case, drafts, joint)

    def _best(
        self, case: Case, drafts: list[Draft], joint: Mapping[str, Sequence[float]]
    ) -> Answer:
        """Return the best answer.

        Args:
            joint: per generation y, log p(z_k | x) p(y | x, z_k) of each passage k.
        """
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
        return self.chosen(best, weighed, log_prob=totals[winner])


def _text(draft: Draft) -> str:
    # Readers score a text without surrounding spaces.
    return draft.raw.strip()
