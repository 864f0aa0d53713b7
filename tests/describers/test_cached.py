"""Descriptions are kept by what they depend on."""

import pytest

from ravqa.core.errors import ContractError
from ravqa.core.records import Description, Question
from ravqa.describers.base import Describer
from ravqa.describers.cached import CachedDescriber

A, B = Question(1, "What?", b"a"), Question(2, "Where?", b"b")
A_AGAIN = Question(3, "Who?", b"a")


class Echo(Describer):
    """Its caption is the image, and with `reads` the question."""

    fingerprint = "echo"

    def __init__(self, reads=False):
        super().__init__()
        self.reads, self.calls = reads, []

    @property
    def reads_questions(self):
        return self.reads

    def asked(self, question):
        return question.question

    def describe(self, images):
        self.calls += images
        return [Description(caption=image.decode()) for image in images]

    def describe_questions(self, questions):
        if not self.reads:
            return super().describe_questions(questions)
        self.calls += [q.question for q in questions]
        return [Description(caption=f"{q.image.decode()} {q.question}") for q in questions]


class Lookup(Echo):
    kept = False


def captions(describer, *questions):
    return [one.caption for one in CachedDescriber(describer).describe_questions(questions)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAVQA_CACHE", str(tmp_path))


def test_an_image_is_described_once_for_all_of_its_questions():
    echo = Echo()
    assert captions(echo, A, B, A_AGAIN) == ["a", "b", "a"]
    assert captions(echo, A_AGAIN) == ["a"]
    assert echo.calls == [b"a", b"b"]


def test_what_reads_the_question_is_kept_by_image_and_question():
    echo = Echo(reads=True)
    assert captions(echo, A, B, A_AGAIN) == ["a What?", "b Where?", "a Who?"]
    assert captions(echo, A_AGAIN, Question(9, "What?", b"b")) == ["a Who?", "b What?"]
    assert echo.calls == ["What?", "Where?", "Who?", "What?"]


def test_what_is_looked_up_is_not_kept():
    lookup = Lookup(reads=True)
    for _ in range(2):
        assert captions(lookup, A) == ["a What?"]
    assert lookup.calls == ["What?", "What?"]
    assert not CachedDescriber(lookup).stores


def test_what_a_describer_returns_is_checked():
    class Short(Echo):
        def describe(self, images):
            return super().describe(images)[1:]

    with pytest.raises(ContractError, match="describe"):
        captions(Short(), A, B)
