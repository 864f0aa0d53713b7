"""PMSR, ckddls2023/PMSR: any reference, lower-cased, inside of the answer ("CEM"); BEM for E-VQA.

A score depends on the fields that a row of results has, so the rule has one name for each kind of
row. Where the answer is blank, `answer` of the row is scored in its place: it is the reference.
"""

from __future__ import annotations

import ast
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.metrics import evqa
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.infoseek import range_problem
from ravqa.metrics.judges.asking import Asked
from ravqa.metrics.released.base import (
    EVQA,
    INFOSEEK,
    VQA,
    JudgedRule,
    ReleasedRule,
    Source,
    texts,
)

_REPOSITORY = "ckddls2023/PMSR"
_COMMIT = "d86cc8363a7f68beb337be0a0612a6b49bc44675"
_FILE = "eval/metric_eval.py"
_NUMBER = re.compile(r"[-+]?\d*\.?\d+")
_TAGS = re.compile(r"</?(?:answer|reason|think)>")
_VERDICT = re.compile(r"<judge>(.*?)</judge>", re.DOTALL | re.IGNORECASE)
_RULE = "a reference, lower-cased, is a substring of the lower-cased answer"
_PUBLISHED = "InfoSeek (M2KR's 4,708) 50.5, E-VQA single-hop 59.9, OK-VQA 66.0 (as others quote it)"


def verdict_of(reply: str) -> str | None:
    """Return what the first <judge> of its judge's reply holds; None for nothing.

    Only "yes" accepts an answer, in any case; a reply without a verdict leaves the mean.
    """
    found = _VERDICT.search(reply)
    return (found[1].strip() or None) if found else None


class _Cem(ReleasedRule):
    """Containment; `row` says which fields the row of a question has."""

    rule = _RULE
    source = Source(_REPOSITORY, _COMMIT, _FILE, "evaluate_cem_accuracy")

    @abstractmethod
    def row(self, question: Question) -> Mapping[str, Any]:
        """Return those of the fields `answer`, `gold_answer` and `answer_eval` that the row has."""

    def of_text(self, question: Question, text: str) -> float:
        """Return 1 or 0."""
        return float(_contains(text, self.row(question)))


class RowsOfMain(_Cem):
    """Rows as eval/main.py writes them."""

    name = "pmsr.cem.rows_of_main"
    label = "PMSR, CEM"
    forms = INFOSEEK | VQA
    published = _PUBLISHED

    def row(self, question: Question) -> Mapping[str, Any]:
        """Return the answers in both fields; InfoSeek's forms in the one that is for them."""
        answers = list(question.answers)
        return {"gold_answer": answers, "answer_eval": list(question.answer_eval) or answers}


class RowsRangeDict(RowsOfMain):
    """The same, where a number's form is not in a list: then its range is used."""

    name = "pmsr.cem.rows_range_dict"
    label = "PMSR, CEM, ranges"
    rule = "as pmsr.cem.rows_of_main; any number of the answer in the reference's range"
    forms = INFOSEEK
    published = ""

    def row(self, question: Question) -> Mapping[str, Any]:
        """Return the record of a number itself."""
        row = super().row(question)
        first = row["answer_eval"][0]
        return {**row, "answer_eval": first} if isinstance(first, Mapping) else row


class RowsLegacy(_Cem):
    """Rows with `answer` alone: numbers within ten percent, and a blank answer is right."""

    name = "pmsr.cem.rows_legacy"
    label = "PMSR, CEM, older rows"
    rule = (
        "as pmsr.cem.rows_of_main; the last reference that is a number decides, within 10 %; a "
        "blank answer is replaced by the reference"
    )
    forms = INFOSEEK | VQA | EVQA

    def row(self, question: Question) -> Mapping[str, Any]:
        """Return the texts as `answer`."""
        return {"answer": list(texts(question))}


class RowsOfMainList(_Cem):
    """E-VQA's references as a list."""

    name = "pmsr.cem.rows_of_main_list"
    label = "PMSR, CEM, references as a list"
    forms = EVQA
    published = _PUBLISHED

    def row(self, question: Question) -> Mapping[str, Any]:
        """Return the references in both fields."""
        return {"gold_answer": list(question.answers), "answer_eval": list(question.answers)}


class RowsOfMainRawString(_Cem):
    """E-VQA's column `answer` as it is: with several references, the bars must be in the answer."""

    name = "pmsr.cem.rows_of_main_raw_string"
    label = "PMSR, CEM, the column as it is"
    rule = "as pmsr.cem.rows_of_main_list; several references are one text with bars between them"
    forms = EVQA

    def row(self, question: Question) -> Mapping[str, Any]:
        """Return the column in both fields."""
        column = "|".join(question.answers)
        return {"gold_answer": column, "answer_eval": column}


class BemList(JudgedRule):
    """Its E-VQA rule by BEM: all references joined, then one by one; nothing is matched before."""

    name = "pmsr.bem.rows_of_main_list"
    label = "PMSR, BEM"
    rule = "the judge accepts the references joined by commas, or one of them"
    forms = EVQA
    source = Source(_REPOSITORY, _COMMIT, _FILE, "evaluate_bem_accuracy")
    published = _PUBLISHED

    def settled(self, question: Question, text: str) -> float | None:
        """Return None: the judge is asked about everything."""
        return None

    def references(self, question: Question) -> list[str]:
        """Return the references of a row."""
        return list(question.answers)

    def asked(self, question: Question, text: str) -> Sequence[Asked]:
        """Return the joined references, then each of several."""
        answer = _TAGS.sub("", text).strip() if "<answer>" in text else text
        found = self.references(question)
        every = [",".join(found), *found] if len(found) > 1 else found
        return [Asked(question.question, reference, answer) for reference in every]


class BemRawString(BemList):
    """The same for the column `answer` as it is."""

    name = "pmsr.bem.rows_of_main_raw_string"
    label = "PMSR, BEM, the column as it is"
    rule = "the judge accepts the references, which are one text with bars between them"
    published = ""

    def references(self, question: Question) -> list[str]:
        """Return the column; what pandas calls a missing value is no reference."""
        column = "|".join(question.answers)
        return [] if column.lower() == "nan" else [column]


class Llm(JudgedRule):
    """Its rule by a language model, from which answers without a verdict are left out."""

    name = "pmsr.llm"
    label = "PMSR, judge"
    rule = "the judge accepts the answer for the references, which it sees as the text of a list"
    forms = INFOSEEK | VQA | EVQA
    aggregate = "share of right answers among those on which the judge gave a verdict"
    source = Source(_REPOSITORY, _COMMIT, "eval/llm_eval.py", "the script")

    def settled(self, question: Question, text: str) -> float | None:
        """Return None: the judge is asked about everything."""
        return None

    def asked(self, question: Question, text: str) -> Sequence[Asked]:
        """Return the answer with all references together; a number's is its record."""
        forms = list(question.answer_eval or question.answers)
        reference = dict(forms[0]) if isinstance(forms[0], Mapping) else forms
        return [Asked(question.question, str(reference), text)]

    def counted(
        self, records: Sequence[AnswerRecord], outcomes: Sequence[float | Failure]
    ) -> list[bool]:
        """Return where there is a verdict."""
        return [not isinstance(outcome, Failure) for outcome in outcomes]


def _contains(text: str, row: Mapping[str, Any]) -> bool:
    answer = _read(row.get("answer"))
    gold = answer if answer is not None else _read(row.get("gold_answer"))
    forms = _read(row.get("answer_eval"))
    low = (text or str(row.get("answer", ""))).lower()
    numbers = [float(number) for number in _NUMBER.findall(low)]
    bounds = forms.get("range") if isinstance(forms, Mapping) else None
    if isinstance(bounds, list) and not range_problem("numerical", [forms]):
        start, end = bounds
        if any(start <= number <= end for number in numbers):
            return True
    elif isinstance(forms, list) and any(str(form).lower() in low for form in forms):
        return True
    if not isinstance(gold, list):
        return gold is not None and str(gold).lower() in low
    right = False
    for item in map(str, gold):
        parts = [_normalise(part) for part in item.split(evqa.BETWEEN) if part.strip()]
        if evqa.BETWEEN in item and sum(part in low for part in parts) > len(parts) / 2:
            return True
        right = right or item.lower() in low
        if not forms and (value := _number(item)) is not None:
            right = any(abs(number - value) <= 0.1 * value for number in numbers)
    return right


def _normalise(text: str) -> str:
    """Apply E-VQA's clean-up, which here drops the mark of a span wherever it stands."""
    return evqa.normalise(text.lower().replace(evqa.SPAN_MARK, ""))


def _read(value: Any) -> Any:
    """Return a field's value; a text that looks like a Python literal is read as one."""
    if isinstance(value, str) and value.strip().startswith(("[", "{", "(")):
        try:
            return ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
