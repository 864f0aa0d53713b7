"""CoMEM, WenyiWU0111/CoMEM: official rules on answers cut at the last "is", "the", "of" and "by".

The cut finds these words inside of others too: "Tennis" becomes nothing, "Derby" becomes nothing,
and so both are right for "Paris".
"""

from __future__ import annotations

import re

from ravqa.core.records import Question
from ravqa.metrics import infoseek
from ravqa.metrics.released.base import VQA, ReleasedRule, Source
from ravqa.metrics.released.infoseek_eval import InfoSeekRule, check_numbers, kind_of

_REPOSITORY = "WenyiWU0111/CoMEM"
_COMMIT = "65de8588ce7fe6d12c1e1e2845858165bd917fdf"
_BOXED = re.compile(r"\\boxed\{(.*?)\}")
_CUTS = ("is", "the", "of", "by")


def normalise(text: str) -> str:
    """Apply InfoSeek's clean-up, with the cut between punctuation and articles."""
    text = infoseek.without_punctuation(text)
    for word in _CUTS:
        text = text.rpartition(word)[2]
    return infoseek.without_articles(text)


def extracted(text: str) -> str:
    r"""Return the first \boxed{...}, or what follows the last colon, cleaned up."""
    boxed = _BOXED.search(text)
    return normalise(boxed[1] if boxed else text.rpartition(":")[2])


class ForInfoSeek(InfoSeekRule):
    """Its rule for InfoSeek."""

    name = "comem.infoseek"
    label = "CoMEM, InfoSeek"
    rule = (
        'InfoSeek\'s rule on texts cut at the last colon, "is", "the", "of" and "by"; for times, '
        "one inside the other is enough"
    )
    source = Source(_REPOSITORY, _COMMIT, "CoMEM-inference/infoseek/infoseek_eval.py", "evaluate")
    published = "the InfoSeek tables of CoMEM's paper"

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0."""
        if not question.answer_eval:
            raise ValueError("no 'answer_eval'")
        text = text.rpartition(":")[2]
        kind = kind_of(question)
        if kind == "numerical":
            check_numbers(text)
            return infoseek.infoseek_score(text, question.answer_eval, kind)
        given = extracted(text)
        wanted = [extracted(str(form)) for form in question.answer_eval]
        if kind == "time" and given:
            return float(any(form and (form in given or given in form) for form in wanted))
        return float(kind != "time" and given in wanted)


class ForOKVQA(ReleasedRule):
    """Its rule for OK-VQA, which reads the ten answers from the text of a list."""

    name = "comem.okvqa"
    label = "CoMEM, OK-VQA"
    rule = "the cut answer is one of the annotators' answers, which are not cleaned up"
    forms = VQA
    source = Source(_REPOSITORY, _COMMIT, "CoMEM-inference/OK-VQA/okvqa_eval.py", "the script")
    published = "the OK-VQA tables of CoMEM's paper"

    def problem(self, question: Question) -> str:
        """Return whether all answers are blank, at which the released code stops."""
        if not question.answers:
            return "no answers"
        return "" if _listed(question.answers) else "all answers are blank"

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0."""
        if problem := self.problem(question):
            raise ValueError(problem)
        return float(extracted(text) in _listed(question.answers))


class ForAOKVQA(ReleasedRule):
    """Its rule for A-OKVQA."""

    name = "comem.aokvqa"
    label = "CoMEM, A-OKVQA"
    rule = ForOKVQA.rule
    forms = VQA
    source = Source(
        _REPOSITORY, _COMMIT, "CoMEM-inference/AOK-VQA/aokvqa_eval.py", "run_evaluation"
    )
    published = "the A-OKVQA tables of CoMEM's paper"

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0."""
        return float(extracted(text) in {answer.strip() for answer in question.answers} - {""})


def _listed(answers: tuple[str, ...]) -> set[str]:
    """Return the answers as the released code reads them from the text of a list (numpy's)."""
    text = " ".join(map(repr, answers)).replace("[", "").replace("]", "")
    return {part.strip() for part in text.split("'")} - {""}
