"""Scores of questions with choices, against counts by hand."""

import json

import pytest

from ravqa.core.records import Question
from ravqa.metrics import aokvqa_direct_answer
from ravqa.metrics.aokvqa import AOKVQADirectAnswer, AOKVQAMultipleChoice
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.multiple_choice import MultipleChoice

TEN = ("rain",) * 4 + ("snow",) * 2 + ("Rain", "rain ", "a rain", "hail")
ASKED = Question("a", "What is it?", answers=TEN, choices=("snow", "Rain", "sun"), correct_choice=1)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [("rain", 1), ("snow", 2 / 3), ("Rain", 1 / 3), ("hail", 1 / 3), ("the rain", 0), ("", 0)],
)
def test_direct_answers_are_counted_letter_by_letter(prediction, score):
    assert aokvqa_direct_answer(prediction, TEN) == pytest.approx(score)
    metric, record = AOKVQADirectAnswer(), AnswerRecord(prediction)
    assert metric.score(ASKED, record) == pytest.approx(score)
    assert metric.is_right(ASKED, record, score) == metric.matches(ASKED, prediction) == (score > 0)


def test_direct_answers_need_answers():
    with pytest.raises(ValueError, match=r"^the direct-answer score needs annotators' answers$"):
        aokvqa_direct_answer("rain", [])
    assert AOKVQADirectAnswer().problem(Question(1, "q")) == "no answers"


@pytest.mark.parametrize("metric", [MultipleChoice(), AOKVQAMultipleChoice()])
def test_a_choice_is_right_letter_by_letter(metric):
    given = ["Rain", "rain", "Rain ", "snow", "B", "(B) Rain", ""]
    assert metric.scores([ASKED] * 7, [AnswerRecord(text) for text in given]) == [1, *[0] * 6]
    assert metric.scores([ASKED], [AnswerRecord(None)]) == [0]
    assert metric.summary([ASKED] * 4, [1, 0, 0, 0]) == {"score": 25}
    assert metric.problem(ASKED) == ""


def test_what_cannot_be_scored_as_a_choice_is_said():
    metric = MultipleChoice()
    for question, problem in (
        (Question(7, "q", answers=("rain",)), "no choices"),
        (Question(7, "q", choices=("rain", "snow")), "the right choice is not known"),
    ):
        assert metric.problem(question) == problem
        with pytest.raises(ValueError, match=f"^question 7: {problem}$"):
            metric.score(question, AnswerRecord("rain"))


def test_the_files_of_the_leaderboard():
    answers = {"22Mex": "Löwe", 7: ""}
    for metric, key in (
        (AOKVQAMultipleChoice(), "multiple_choice"),
        (AOKVQADirectAnswer(), "direct_answer"),
    ):
        found = metric.submission(answers)
        assert found.file == "predictions.json"
        assert json.loads(found.text) == {"22Mex": {key: "Löwe"}, "7": {key: ""}}
