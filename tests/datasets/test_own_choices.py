"""Choices in the user's own questions: how they are read, scored and refused."""

import json

import pytest

from ravqa.core.errors import DataError
from ravqa.datasets import files
from ravqa.datasets.base import DatasetRequest

ROW = {"question_id": 1, "question": "What falls?", "choices": ["snow", "Rain", "1998"]}


def write(folder, *rows):
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(ROW | row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path, loader=files.load_jsonl, **options):
    return loader(DatasetRequest(data=path, options=options))


@pytest.mark.parametrize(
    ("change", "place", "answers"),
    [
        ({"correct_choice": "Rain"}, 1, ("Rain",)),
        ({"correct_choice": 1998}, 2, ("1998",)),
        ({"correct_choice_idx": 0}, 0, ("snow",)),
        ({"correct_choice": "Rain", "answers": ["drops"]}, 1, ("drops",)),
        ({"answers": ["drops"]}, None, ("drops",)),
        ({}, None, ()),
    ],
)
def test_choices_in_json_lines(tmp_path, change, place, answers):
    [question] = load(write(tmp_path, change)).questions
    assert question.choices == ("snow", "Rain", "1998")
    assert (question.correct_choice, question.answers) == (place, answers)
    assert question.extra == {}


@pytest.mark.parametrize(
    "cells", ["snow|Rain|1998,Rain,", "snow|Rain|1998,,1", '"[""snow"", ""Rain"", ""1998""]",Rain,']
)
def test_choices_in_tables(tmp_path, cells):
    path = tmp_path / "q.csv"
    path.write_text(
        f"question_id,question,choices,correct_choice,correct_choice_idx\n1,What falls?,{cells}\n"
    )
    found = load(path, files.load_csv, metric="multiple_choice")
    [question] = found.questions
    assert (question.choices, question.right_choice) == (("snow", "Rain", "1998"), "Rain")
    assert (found.metric, found.notes) == ("multiple_choice", [])


def test_another_metric_is_noted(tmp_path):
    path = write(tmp_path, {"correct_choice": "Rain"})
    assert load(path).notes == [
        "the questions have choices, and are scored by exact_match: --dataset-option "
        "metric=multiple_choice scores them by the right choice"
    ]
    assert load(write(tmp_path, {"choices": None, "answers": ["x"]})).notes == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"correct_choice": "rain"}, "'correct_choice' is 'rain', which is none of the choices"),
        (
            {"correct_choice_idx": 3},
            "'correct_choice_idx' is 3, from 0, but there are 3 choices",
        ),
        ({"correct_choice_idx": -1}, "'correct_choice_idx' is '-1': a position from 0 is expected"),
        (
            {"correct_choice": "snow", "correct_choice_idx": 0},
            "'correct_choice' and 'correct_choice_idx' are both given: which one is meant?",
        ),
        ({"choices": ["snow", ""], "correct_choice_idx": 0}, "'choices': one is blank"),
        ({"choices": [], "answers": ["snow"]}, "no choices"),
        ({"answers": ["snow"]}, "the right choice is not known"),
    ],
)
def test_choices_that_cannot_be_used(tmp_path, change, said):
    path = write(tmp_path, change)
    with pytest.raises(DataError) as error:
        load(path, metric="multiple_choice")
    assert str(error.value) == (
        f"{path}, line 1: {said} (--on-error skip leaves such questions out)"
    )
