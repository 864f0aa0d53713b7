"""lmms-eval, EvolvingLMMs-Lab/lmms-eval: its own clean-up, always; thinking is removed."""

from __future__ import annotations

import re

from ravqa.core.records import Question
from ravqa.metrics import vqa
from ravqa.metrics.released.base import VQA, ReleasedRule, Source

_REPOSITORY = "EvolvingLMMs-Lab/lmms-eval"
_COMMIT = "75571cfe0fa36ca5ec2e6aa2bb268f9d38295af3"
_FILE = "lmms_eval/tasks/ok_vqa/utils.py"
_TAGS = (("<think>", "</think>"), ("<analysis>", "</analysis>"))


def without_thinking(text: str) -> str:
    """Return a text without thinking: pairs of tags, and what precedes a lone closing tag."""
    for opening, closing in _TAGS:
        text = re.sub(f"{opening}.*?{closing}", "", text, flags=re.DOTALL)
        if closing in text:
            text = text.rpartition(closing)[2]
    return text.strip()


def normalise(text: str) -> str:
    """Apply its clean-up."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa.normalise(text)


class OkVqaRaw(ReleasedRule):
    """Its OK-VQA task without the removal of thinking."""

    name = "lmms_eval.ok_vqa.reasoning_tags_none"
    label = "lmms-eval, OK-VQA, thinking kept"
    rule = "as lmms_eval.ok_vqa; thinking is not removed"
    forms = VQA
    source = Source(_REPOSITORY, _COMMIT, _FILE, "ok_vqa_process_results")

    def of_text(self, question: Question, text: str) -> float:
        """Return the accuracy."""
        prediction = normalise(text)
        agreeing = sum(normalise(answer) == prediction for answer in question.answers)
        return vqa.leave_one_out(agreeing, len(question.answers))


class OkVqa(OkVqaRaw):
    """Its OK-VQA task with the command line's defaults."""

    name = "lmms_eval.ok_vqa"
    label = "lmms-eval, OK-VQA"
    rule = "mean over annotators of min(1, matches among the others / 3), after its own clean-up"
    source = Source(
        _REPOSITORY,
        _COMMIT,
        f"{_FILE}, lmms_eval/api/reasoning.py",
        "strip_reasoning_tags, ok_vqa_process_results",
    )
    published = "OK-VQA in reports of multimodal models that use it"

    def of_text(self, question: Question, text: str) -> float:
        """Return the accuracy."""
        return super().of_text(question, without_thinking(text))
