"""The conformance suite of dataset loaders: whole parts pass, broken ones do not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from own_parts import from_docs

from ravqa.core.records import Question
from ravqa.datasets import DATASETS
from ravqa.datasets.base import Dataset, DatasetRequest
from ravqa.datasets.files import load_jsonl
from ravqa.testing import check_dataset

ROWS = [{"question_id": i, "question": f"What is {i}?", "answers": ["a koala"]} for i in range(3)]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return DatasetRequest(data=path)


def test_the_loader_of_files(questions):
    check_dataset(load_jsonl, questions)


@pytest.mark.parametrize("name", ["okvqa", "infoseek"])
def test_the_loaders_of_the_bundled_sample(name):
    check_dataset(DATASETS.get(name), DatasetRequest(limit=3))


def test_the_loader_of_the_docs(tmp_path):
    load = from_docs("zoo.py")["load"]
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    rows = text.split("questions_val.json -->\n```json\n")[1].split("```")[0]
    (tmp_path / "questions_val.json").write_text(rows, encoding="utf-8")
    check_dataset(load, DatasetRequest(data=tmp_path, need_images=False))


def made(**changes):
    """A loader of three questions with one thing changed."""

    def load(request):
        if request.data is None or not request.data.exists():
            return load_jsonl(request)
        found = load_jsonl(request)
        values = {name: change(found, request) for name, change in changes.items()}
        return replace(found, **values)

    return load


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": lambda d, r: ""}, "Dataset.label is a text that is not blank"),
        ({"questions": lambda d, r: []}, "there is a question"),
        (
            {"questions": lambda d, r: [replace(d.questions[0], choices=("a", " "))]},
            "choices are texts, none of them blank",
        ),
        ({"questions": lambda d, r: [*d.questions, *d.questions]}, "stands for one question"),
        (
            {"questions": lambda d, r: [replace(q, answers=(1,)) for q in d.questions]},
            "answers are texts",
        ),
        ({"questions": lambda d, r: [Question(7, "")]}, "a question is a text"),
        ({"fingerprint": lambda d, r: str(id(r))}, "with the same fingerprint"),
        ({"info": lambda d, r: {"set": {1}}}, "cannot be written as JSON"),
        ({"split": lambda d, r: 1 / 0}, "the loader load raises ZeroDivisionError"),
    ],
)
def test_a_loader_that_breaks_its_contract(changes, sentence, questions):
    check_dataset(made(), questions)
    with pytest.raises(AssertionError, match=f"{sentence}.*ravqa.datasets.base.Dataset"):
        check_dataset(made(**changes), questions)


def test_a_loader_that_takes_everything(questions):
    def load(request):
        return Dataset("any", "Any", "all", [Question(1, "What?")], None, "any/1")

    with pytest.raises(AssertionError, match="refuses an unknown option"):
        check_dataset(load, questions)
