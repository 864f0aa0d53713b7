"""The choice that is most probable over all passages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ravqa.answering.priors import log_sum
from ravqa.answering.rules.base import Case, WeighsPassages, first_best
from ravqa.core.outcomes import Failure, first_failure
from ravqa.core.records import Answer, Draft
from ravqa.readers.base import Abilities
from ravqa.readers.cached import CachedReader


class LikeliestChoice(WeighsPassages):
    """The choice c of the question with the largest

        P(c) = sum of p(z_k | x) p(c | x, z_k) over all passages k

    Nothing is generated: the reader scores the text of every choice after every prompt, so that the
    answer is always a choice. Probabilities are not normalised by length, which favours short
    choices. The answer's log-probability is log P(c) - log sum of P over all choices; ties go to
    the first choice.
    """

    needs_choices = True

    def problem(self, reader: Abilities) -> str:
        """Require scores of given answers."""
        return "" if reader.scores_answers else "scores the choices as answers"

    @property
    def chooses(self) -> bool:
        """True: nothing is generated that could be streamed."""
        return True

    @property
    def asks_once(self) -> bool:
        """True: all choices are scored in one call."""
        return True

    def answer(self, cases: Sequence[Case], reader: CachedReader) -> list[Answer | Failure]:
        """Return one answer per question, in order; a question without choices fails."""
        asked = [
            (prompt, choice)
            for case in cases
            for choice in case.question.choices
            for prompt in case.prompts
        ]
        # One call for all questions, so that the reader can form batches.
        scores = iter(reader.score([prompt for prompt, _ in asked], [text for _, text in asked]))
        return [
            self._best(case, [[next(scores) for _ in case.prompts] for _ in case.question.choices])
            for case in cases
        ]

    def _best(self, case: Case, scores: Sequence[Sequence[float | Failure]]) -> Answer | Failure:
        """Return the best choice.

        Args:
            scores: per choice, log p(c | x, z_k) of each prompt.
        """
        if not scores:
            return Failure(
                f"answering.decision {self.config.decision} chooses among a question's choices, "
                "but this question has none"
            )
        if failure := first_failure(score for row in scores for score in row):
            return failure
        likelihoods = [[s for s in row if not isinstance(s, Failure)] for row in scores]
        joint = [
            [log_prior + score for log_prior, score in zip(case.log_priors, row, strict=True)]
            for row in likelihoods
        ]
        totals = [log_sum(row) for row in joint]
        best = first_best(totals)
        if totals[best] == -math.inf:
            return Failure("the reader gives every choice the probability 0")
        choice = case.question.choices[best]
        drafts = [
            Draft(
                choice,
                choice,
                log_prob=likelihoods[best][k],
                passage_ids=case.passage_ids[k],
                prompt_hash=case.keys[k],
                score=joint[best][k],
                prior=math.exp(case.log_priors[k]),
                posterior=math.exp(joint[best][k] - totals[best]),
            )
            for k in range(len(case.prompts))
        ]
        return Answer(
            choice,
            drafts,
            self.config.decision,
            raw=choice,
            log_prob=totals[best] - log_sum(totals),
            joint=len(drafts) > 1,
        )

    def decide(self, case: Case, drafts: list[Draft]) -> Answer:
        """Never called: nothing is generated."""
        raise AssertionError("nothing is generated")
