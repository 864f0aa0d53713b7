"""LAVIS, salesforce/LAVIS (copied by EchoSight and OMGM): an older form of VQA's evaluation.

Annotators' answers lose only punctuation, so that "two", "Pizza" or "an apple" by annotators can
never be matched by a prediction, which is cleaned up completely.
"""

from __future__ import annotations

from ravqa.core.records import Question
from ravqa.metrics import vqa
from ravqa.metrics.released.base import VQA, ReleasedRule, Source
from ravqa.metrics.released.vqa import left_out_together

_REPOSITORY = "salesforce/LAVIS"
_COMMIT = "200ac172"


class Vqa(ReleasedRule):
    """Its VQA accuracy."""

    name = "lavis.vqa"
    label = "LAVIS, VQA accuracy"
    rule = "as vqa.official; predictions are always cleaned up, answers lose only punctuation"
    forms = VQA
    source = Source(
        _REPOSITORY, _COMMIT, "lavis/common/vqa_tools/vqa_eval.py", "VQAEval.evaluate, n=2"
    )
    published = "probably BLIP-2's and InstructBLIP's OK-VQA (not confirmed)"

    def of_text(self, question: Question, text: str) -> float:
        """Return the accuracy."""
        prediction, answers = _cleaned(text, question)
        return round(vqa.leave_one_out(answers.count(prediction), len(answers)), 4)


class WithoutAnswerIds(Vqa):
    """The same on annotations without `answer_id`."""

    name = "lavis.vqa.without_answer_ids"
    label = "LAVIS, VQA accuracy, annotations without ids"
    rule = "as lavis.vqa; leaving an annotator out leaves out all with the same answer"
    published = ""

    def of_text(self, question: Question, text: str) -> float:
        """Return the accuracy."""
        return left_out_together(*_cleaned(text, question))


class AokVqa(ReleasedRule):
    """Its A-OKVQA accuracy."""

    name = "lavis.aok_vqa"
    label = "LAVIS, A-OKVQA"
    rule = "min(1, n / 3), with n annotators whose answer equals the prediction as it is"
    forms = VQA
    source = Source(_REPOSITORY, _COMMIT, "lavis/tasks/vqa.py", "AOKVQATask._report_metrics")

    def of_text(self, question: Question, text: str) -> float:
        """Return the accuracy."""
        return min(1.0, question.answers.count(text) / 3)


def _cleaned(text: str, question: Question) -> tuple[str, list[str]]:
    answers = list(question.answers)
    if len(set(answers)) > 1:
        answers = [vqa.without_punctuation(answer) for answer in answers]
    return vqa.normalise(text), answers
