"""The target of a prompt, by hand-made cases."""

import pytest

from ravqa.core.errors import UserError
from ravqa.core.records import Passage, Question
from ravqa.core.settings import validate
from ravqa.training.targets import TargetConfig, candidates, target


def asked(*answers, question_type=None):
    return Question(1, "Which?", answers=answers, question_type=question_type)


def passage(text, title=None):
    return Passage("p", text, title=title)


TEN = ["santa fe"] * 4 + ["albuquerque"] * 3 + ["taos"] * 2 + ["the town"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["It runs to Taos and Santa Fe."], ("santa fe", True)),  # the most frequent of both
        (["It runs to Taos and Albuquerque."], ("albuquerque", True)),
        (["It runs to Taos."], ("taos", True)),
        (["It runs far."], ("santa fe", False)),  # none: the most frequent of all
        ([], ("santa fe", False)),
        (["It runs far.", "TAOS is small."], ("taos", True)),  # any of the passages, any case
    ],
)
def test_the_target_is_the_most_frequent_answer_that_a_passage_holds(texts, expected):
    assert target(asked(*TEN), [passage(text) for text in texts], TargetConfig()) == expected


def test_a_title_is_part_of_a_passage():
    found = target(asked(*TEN), [passage("It is small.", title="Taos")], TargetConfig())
    assert found == ("taos", True)


def test_equally_frequent_answers_keep_the_order_of_the_data():
    question = asked("red", "blue", "blue", "red", "green")
    assert candidates(question, TargetConfig()) == ["red", "blue", "green"]
    assert target(question, [passage("blue and red")], TargetConfig()) == ("red", True)
    # Spaces around an answer make no other one, and blank ones are none.
    assert candidates(asked(" red", "red ", "", "  ", "blue"), TargetConfig()) == ["red", "blue"]


def test_what_holds_an_answer_is_a_setting():
    question = asked("art", "art", "party")
    assert target(question, [passage("A party.")], TargetConfig()) == ("art", True)
    assert target(question, [passage("A party.")], TargetConfig(contains="word")) == ("party", True)


def test_rare_and_placeholder_answers_are_no_targets():
    known = ["zqunknown5", "zqunknown6", "santa fe", "santa fe", "taos"]
    text = [passage("zqunknown5 and taos")]
    assert target(asked(*known), text, TargetConfig()) == ("zqunknown5", True)
    pattern = TargetConfig(exclude=r"zqunknown\d+")
    assert candidates(asked(*known), pattern) == ["santa fe", "taos"]
    assert target(asked(*known), text, pattern) == ("taos", True)
    assert candidates(asked("my zqunknown5"), pattern) == ["my zqunknown5"]  # as a whole
    assert target(asked(*known), text, TargetConfig(min_agreeing=2)) == ("santa fe", False)
    assert target(asked("zqunknown5", "zqunknown6"), text, pattern) is None
    assert target(asked(), text, TargetConfig()) is None


def test_questions_with_several_answers_have_them_in_one_target():
    question = asked("oak && ash", "elm", question_type="multi_answer")
    assert target(question, [passage("The elm.")], TargetConfig()) == ("elm", True)
    assert target(question, [passage("An ash.")], TargetConfig()) == ("oak, ash", True)
    assert target(question, [passage("A fir.")], TargetConfig()) == ("oak, ash", False)


def test_a_bad_pattern_is_one_line():
    with pytest.raises(UserError, match=r"^x: key 'exclude': .*not a regular expression: ") as e:
        validate(TargetConfig, {"exclude": "("}, "x")
    assert "\n" not in str(e.value)


def test_the_target_of_a_question_with_choices_is_the_right_one():
    chosen = Question(1, "q", answers=("koala",) * 9, choices=("bear", "cat"), correct_choice=0)
    assert target(chosen, [passage("a koala")], TargetConfig()) == ("bear", False)
    assert target(chosen, [passage("a bear")], TargetConfig()) == ("bear", True)
