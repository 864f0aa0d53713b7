"""The conformance suite of dataset loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ravqa.core.errors import UserError
from ravqa.core.records import Question
from ravqa.datasets.base import Dataset, DatasetRequest, Problems
from ravqa.testing.asserting import named, refused, require, require_json, require_names


def check_dataset(load: Callable[[DatasetRequest], Dataset], request: DatasetRequest) -> None:
    """Check a dataset loader: it reads the request several times.

    Args:
        load: the loader.
        request: what it can read without a broken record: at least one question.

    Raises:
        AssertionError: the loader breaks the contract of `ravqa.datasets.base`.
    """
    with named(f"the loader {load.__name__}", "ravqa.datasets.base.Dataset"):
        _check(load, request)


def _check(load: Callable[[DatasetRequest], Dataset], request: DatasetRequest) -> None:
    name = load.__name__
    found = load(request)
    require(isinstance(found, Dataset), f"{name} returns a Dataset, got {type(found).__name__}")
    require_names(found, "name", "label", "split", "fingerprint")
    questions = list(found.questions)
    require(questions, f"{name} reads the suite's request: there is a question")
    for question in questions:
        require(isinstance(question, Question), f"{name} makes Questions, got {question!r}")
        text = question.question
        require(isinstance(text, str) and text.strip(), f"{name}: a question is a text: {question}")
        require(
            question.image is None or isinstance(question.image, Path | bytes),
            f"{name}: an image is a path or bytes, got {question.image!r}",
        )
        require(
            all(isinstance(answer, str) for answer in question.answers),
            f"{name}: answers are texts, got {question.answers!r}",
        )
        require(
            all(isinstance(choice, str) and choice.strip() for choice in question.choices),
            f"{name}: choices are texts, none of them blank, got {question.choices!r}",
        )
    ids = [question.question_id for question in questions]
    require(
        len({str(i) for i in ids}) == len(ids), f"{name}: a question id stands for one question"
    )
    if found.metric is not None:
        metric = found.answer_metric
        problems = [problem for q in questions if (problem := metric.problem(q))]
        require(not problems, f"{name}: the metric {found.metric} can score it, got {problems[:1]}")
    require_json(dict(found.info), f"what {name} says of itself in `info`")
    again = load(replace(request, problems=Problems()))
    require(
        again.fingerprint == found.fingerprint and list(again.questions) == questions,
        f"{name} reads the same request alike, with the same fingerprint",
    )
    first = load(replace(request, problems=Problems(), limit=1))
    require(list(first.questions) == questions[:1], f"{name} reads `limit` questions: the first")
    odd = replace(request, problems=Problems(), options={**request.options, "no_such_option": 1})
    refused(UserError, lambda: load(odd), f"{name} refuses an unknown option (`options_of` does)")
    absent = Path("there-is-no-such-folder") / "file"
    nowhere = replace(request, problems=Problems(), data=absent)
    refused(UserError, lambda: load(nowhere), f"{name} refuses data that does not exist")
