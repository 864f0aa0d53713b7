"""A reader's own verdict: it is asked whether its answer is right, as a confidence on record.

The confidence is p(yes) / (p(yes) + p(no)) by the same reader, P(True) of Kadavath et al. 2022
(arXiv 2207.05221), where both words count in lower case and with a capital, each with the
probability that the generation is exactly that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ravqa.answering.fitting import Pair, fit
from ravqa.answering.priors import log_softmax
from ravqa.answering.prompt import PromptTemplate
from ravqa.core.errors import UserError
from ravqa.core.failures import by_halves
from ravqa.core.outcomes import Failure, first_failure
from ravqa.core.records import Question
from ravqa.readers.base import Prompt, Reader

_YES, _NO = ("yes", "Yes"), ("no", "No")


def load_self_check(name: str) -> PromptTemplate:
    """Load the prompt of `answering.self_check`.

    Raises:
        UserError: an unknown or bad prompt, or one that does not show the answer.
    """
    template = PromptTemplate.load(name)
    if "answer" not in template.uses:
        raise UserError(f"answering.self_check: prompt {template.name} does not show the answer")
    return template


def self_checks(
    template: PromptTemplate,
    reader: Reader,
    questions: Sequence[Question],
    passages: Sequence[Sequence[Pair]],
    answers: Sequence[str],
) -> list[float | Failure]:
    """Return the reader's probability that each answer is right, 0 to 1, in order.

    Args:
        template: shows the answer, and is continued by yes or no.
        reader: scores given answers.
        passages: what is shown with each question; the last ones are left out if they do not fit.

    Raises:
        UserError: the reader cannot be used at all.
    """

    def ask(rows: Sequence[int]) -> list[float | Failure]:
        def render(place: int, group: Sequence[Pair], _: int) -> Prompt:
            row = rows[place]
            shown = [passage for _, passage in group]
            return template.prompt(questions[row], shown, reader=reader, answer=answers[row])[0]

        prompts = [prompt for _, prompt in fit([passages[row] for row in rows], render, reader)]
        words = [*_YES, *_NO]
        # A prompt's words are adjacent, so that readers run it through the model once.
        scores = reader.score([p for p in prompts for _ in words], words * len(prompts))
        each = [scores[i : i + len(words)] for i in range(0, len(scores), len(words))]
        return [_probability(own) for own in each]

    return by_halves(range(len(questions)), ask, "answering.self_check")


def _probability(scores: Sequence[float | Failure]) -> float | Failure:
    """Return the probability of yes from the log-probabilities of all words."""
    known = [score for score in scores if not isinstance(score, Failure)]
    return first_failure(scores) or math.fsum(
        math.exp(log) for log in log_softmax(known)[: len(_YES)]
    )
