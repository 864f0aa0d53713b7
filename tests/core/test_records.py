"""Texts of records can be encoded, hashed and written."""

import os

import pytest

from ravqa.core.errors import DataError
from ravqa.core.records import Passage, Question
from ravqa.core.settings import fingerprint

HALF = "a koala \ud83d"
LATIN = os.fsdecode(b"caf\xe9")  # as a name or an argument in Latin-1 arrives


@pytest.mark.parametrize("text", [HALF, LATIN])
@pytest.mark.parametrize("field", ["passage_id", "text", "title", "section", "article", "url"])
def test_a_passage_with_half_a_character_is_refused(field, text):
    values = {"passage_id": "p", "text": "t"} | {field: text}
    with pytest.raises(DataError, match=r"passage: the text .* is not UTF-8 at character"):
        Passage(**values)


@pytest.mark.parametrize("text", [HALF, LATIN])
@pytest.mark.parametrize("field", ["question_id", "question", "instruction", "image_id"])
def test_a_question_with_half_a_character_is_refused(field, text):
    values = {"question_id": 1, "question": "q"} | {field: text}
    with pytest.raises(DataError, match=r"question: the text .* is not UTF-8 at character"):
        Question(**values)
    with pytest.raises(DataError, match="question: "):
        Question(1, "q", answers=("a", text))


def test_whole_characters_of_every_kind_are_kept():
    text = "\U0001f428 café \u0301 漢字 \u2028 \0 \U0010ffff"
    assert Passage(text, text).text == Question(text, text).question == text


def test_fingerprints_of_names_that_are_not_utf8_differ():
    assert fingerprint(LATIN) not in {fingerprint("caf"), fingerprint(os.fsdecode(b"caf\xe8"))}


@pytest.mark.parametrize(("place", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_right_choice_is_one_of_the_choices(place, count):
    choices = ("leaves", "fish")[:count]
    with pytest.raises(DataError) as error:
        Question(1, "q", choices=choices, correct_choice=place)
    assert str(error.value) == (
        f"the right choice is number {place}, counted from 0, but there are {count} choices"
    )
    with pytest.raises(DataError, match="question: "):
        Question(1, "q", choices=("a", HALF))


def test_the_right_choice_is_a_text():
    assert Question(1, "q", choices=("leaves", "fish"), correct_choice=1).right_choice == "fish"
    assert Question(1, "q", choices=("leaves", "fish")).right_choice is None
