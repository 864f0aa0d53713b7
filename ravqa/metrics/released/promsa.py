"""ProMSA, DingWu1021/Promsa: exact match inside of <answer>, else a language model as judge.

The judge of its numbers is Qwen3-VL-32B. Its prompt has tolerances for years and numbers, which
another judge need not have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ravqa.core.records import Question
from ravqa.metrics import infoseek
from ravqa.metrics.judges.asking import Asked
from ravqa.metrics.released.base import ALL, JudgedRule, ReleasedRule, Source, texts
from ravqa.metrics.released.tags import ANSWER, last_answer

_REPOSITORY = "DingWu1021/Promsa"
_COMMIT = "44c48e5e0ac34de66a0208949c9289d5bd470da5"
_FILE = "verl/verl/utils/reward_score/tool.py"
_THOUGHT = re.compile(r".*</think(?:ing)?>", re.DOTALL)
_END = "<|im_end|>"
_VERDICT = re.compile(r"<judge>\s*(yes|no)\s*</judge>", re.IGNORECASE)


def accepts(reply: str) -> bool:
    """Return whether the first <judge> of its judge's reply with just Yes or No holds Yes."""
    found = _VERDICT.search(reply)
    return found is not None and found[1].lower() == "yes"


def after_thinking(text: str) -> str:
    """Return what follows the last </think> or </thinking>."""
    return _THOUGHT.sub("", text)


def normalise(text: str) -> str:
    """Apply SQuAD's clean-up, which keeps a lone "a" (a choice's letter)."""
    bare = infoseek.without_punctuation(text)
    return "a" if bare.strip() == "a" else infoseek.without_articles(bare)


def _references(question: Question) -> list[str]:
    return [text for text in texts(question) if text.strip()]


def _equal(answer: str, question: Question) -> bool:
    return normalise(answer) in {normalise(reference) for reference in _references(question)}


class EmScore(ReleasedRule):
    """Exact match alone."""

    name = "promsa.em_score"
    label = "ProMSA, exact match"
    rule = "what the last <answer> after the thinking holds is a reference, after its clean-up"
    forms = ALL
    wants = ANSWER
    source = Source(_REPOSITORY, _COMMIT, _FILE, "compute_score_em")

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0."""
        answer = last_answer(after_thinking(text))
        return float(answer is not None and _equal(answer, question))


class LlmScore(JudgedRule):
    """Exact match, else the judge; without <answer> nothing is right."""

    name = "promsa.llm_score"
    label = "ProMSA, judge"
    rule = "what the last <answer> holds is a reference, or the judge accepts it for one"
    forms = ALL
    wants = ANSWER
    source = Source(_REPOSITORY, _COMMIT, _FILE, "compute_score_llm")
    published = "E-VQA 52.2 and 52.6, InfoSeek 53.4 (README, which names BEM and VQA accuracy)"

    def extracted(self, text: str) -> str | None:
        """Return the answer in a prediction, None if it has none."""
        return last_answer(after_thinking(text))

    def settled(self, question: Question, text: str) -> float | None:
        """Return 0 without an answer, 1 for a reference, else None."""
        answer = self.extracted(text)
        if answer is None:
            return 0.0
        return 1.0 if _equal(answer, question) else None

    def asked(self, question: Question, text: str) -> Sequence[Asked]:
        """Return the answer with each reference."""
        answer = self.extracted(text) or ""
        return [Asked(question.question, r, answer) for r in _references(question)]


class LlmScoreAllowNoAnswerTag(LlmScore):
    """The same; a prediction without <answer> is taken whole."""

    name = "promsa.llm_score_allow_no_answer_tag"
    label = "ProMSA, judge, tag optional"
    rule = "as promsa.llm_score; without <answer>, the text after the thinking is the answer"
    wants = ""
    source = Source(_REPOSITORY, _COMMIT, _FILE, "compute_score_llm_allow_no_answer_tag")
    published = ""

    def extracted(self, text: str) -> str | None:
        """Return the answer in a prediction."""
        rest = after_thinking(text)
        answer = last_answer(rest)
        return rest.partition(_END)[0].strip() if answer is None else answer
