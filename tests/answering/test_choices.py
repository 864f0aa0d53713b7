"""From a generation to a choice: what each rule takes, and that nothing is guessed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.answering.answerer import Answerer
from ravqa.answering.choices import choice_of
from ravqa.answering.extract import Extraction, short_answer
from ravqa.answering.rules import answering_config
from ravqa.core.records import Hit, Passage, Question
from ravqa.readers.base import Generation, Reader

CHOICES = ("hot dog", "Dog", "two cats", "St. Bernard")
ASKED = Question(1, "Which?", choices=CHOICES, correct_choice=1)


def mapped(raw, mapping="named", choices=CHOICES):
    return choice_of(raw, short_answer(raw, Extraction(), ""), choices, mapping)


@pytest.mark.parametrize(
    ("raw", "choice"),
    [
        ("Dog", "Dog"),
        ("a dog.", "Dog"),
        ("The hot-dog!", "hot dog"),
        ("2 cats", "two cats"),
        ("st bernard", "St. Bernard"),
        ("Two cats\nQuestion: what else?", "two cats"),
        ("**Answer:** two cats", "two cats"),
        ("Answer: A) hot dog", "hot dog"),
    ],
)
def test_what_equals_a_choice_is_that_choice(raw, choice):
    assert mapped(raw, "equal") == mapped(raw, "named") == choice
    assert mapped(raw, "free") is None


@pytest.mark.parametrize(
    ("raw", "choice"),
    [
        ("B", "Dog"),
        ("(c)", "two cats"),
        ("D.", "St. Bernard"),
        ("B: it is a dog", "Dog"),
        ("b. something else", "Dog"),
        ("It shows two cats on a bed", "two cats"),
        ("Someone eats a hot dog there", "hot dog"),
    ],
)
def test_a_letter_or_the_only_choice_in_the_text_is_that_choice(raw, choice):
    assert mapped(raw, "named") == choice
    assert mapped(raw, "equal") is None


@pytest.mark.parametrize(
    "raw",
    [
        "cat",
        "dogs",
        "E",
        "(z) dog",
        "B. two cats",  # letter and text are two choices
        "A) two cats",
        "a dog or two cats",
        "a hot dog and a dog",
        "a doghouse",
        "",
        "the",
    ],
)
def test_what_gives_no_choice_or_several_is_none(raw):
    assert mapped(raw) is None


def test_equal_texts_come_before_the_clean_up():
    assert mapped("a", choices=("b", "a", "A")) == "a"  # no letter, and no article
    assert mapped("rain", choices=("Rain", "rain")) == "rain"
    assert mapped("RAIN", choices=("Rain", "rain")) is None
    assert mapped("the rain", choices=("a rain", "rain")) is None
    assert mapped("rain", choices=("rain", "rain")) == "rain"
    assert mapped("the", choices=("a", "an")) is None  # both are nothing after the clean-up


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5))
def test_only_choices_are_returned_and_each_is_itself(raw, choices):
    for mapping in ("named", "equal"):
        assert choice_of(raw, raw, choices, mapping) in {None, *choices}
        chosen = choice_of(choices[0], choices[0], choices, mapping)
        assert chosen in {choices[0], None}
        if choices[0].strip() == choices[0]:
            assert chosen == choices[0]


class Script(Reader):
    """Says what is written for the passage in the prompt."""

    fingerprint = weights = "script"

    def __init__(self, **says):
        self.says = says

    def generate(self, prompts):
        return [Generation(self.says[p.text[-1]]) for p in prompts]


@pytest.fixture
def ask(tmp_path):
    """Answers a question from passages called a, b, ... by a reader."""
    prompt = tmp_path / "last.jinja"
    prompt.write_text("{{ question }}{% for p in passages %}{{ p.text }}{% endfor %}")

    def answer(question, reader, names, **options):
        settings = {"prompt": str(prompt), "passages": len(names), "cache": False, **options}
        found = [(Hit(n, 9.0 - i, i + 1), Passage(n, n)) for i, n in enumerate(names)]
        [got] = Answerer(answering_config(settings), reader).answer([question], [found])
        return got

    return answer


def test_drafts_are_choices_before_a_rule_compares_them(ask):
    reader = Script(a="It is a St. Bernard.", b="A) hot dog", c="D", d="a wolf")
    answer = ask(ASKED, reader, "abcd", decision="vote")
    assert [draft.text for draft in answer.drafts] == [
        "St. Bernard",
        "hot dog",
        "St. Bernard",
        "a wolf",
    ]
    assert (answer.text, answer.raw) == ("St. Bernard", "It is a St. Bernard.")
    free = ask(ASKED, reader, "abcd", decision="vote", choices="free")
    assert [draft.text for draft in free.drafts] == ["st. bernard", "a) hot dog", "d", "a wolf"]
    plain = ask(replace(ASKED, choices=(), correct_choice=None), reader, "abcd", decision="vote")
    assert plain == free
