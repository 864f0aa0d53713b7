"""The official VQA evaluation, GT-Vision-Lab/VQA, also as it works without ids of answers."""

from __future__ import annotations

from ravqa.core.records import Question
from ravqa.metrics.released.base import VQA, ReleasedRule, Source
from ravqa.metrics.vqa import cleaned, vqa_accuracy

_SOURCE = Source(
    "GT-Vision-Lab/VQA",
    "a013f0043c1e2cdc995922dfe257f7149aa9af06",
    "PythonEvaluationTools/vqaEvaluation/vqaEval.py",
    "VQAEval.evaluate, n=2",
)


class Official(ReleasedRule):
    """The official rule; scores are rounded to two decimals of a percent."""

    name = "vqa.official"
    label = "VQA accuracy, official code"
    rule = (
        "mean over annotators of min(1, matches among the others / 3); cleaned up only if answers "
        "differ"
    )
    forms = VQA
    source = _SOURCE
    published = "the OK-VQA columns of RA-VQA, PreFLMR and BERAG"

    def of_text(self, question: Question, text: str) -> float:
        """Return the accuracy."""
        return round(vqa_accuracy(text, question.answers), 4)


class WithoutAnswerIds(ReleasedRule):
    """The same code on annotations without `answer_id`, where equal answers are one answer."""

    name = "vqa.official.without_answer_ids"
    label = "VQA accuracy, annotations without ids"
    rule = "as vqa.official; leaving an annotator out leaves out all with the same answer"
    forms = VQA
    source = _SOURCE

    def of_text(self, question: Question, text: str) -> float:
        """Return the accuracy."""
        prediction, answers = cleaned(text, question.answers)
        return left_out_together(prediction, answers)


def left_out_together(prediction: str, answers: list[str]) -> float:
    """Return the accuracy where equal answers cannot be told apart."""
    agreeing = answers.count(prediction)
    others = len(answers) - agreeing
    return round(others * min(1.0, agreeing / 3) / len(answers), 4)
