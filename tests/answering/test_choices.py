"""From a generation to a choice: what each rule takes, and that nothing is guessed."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.answering.answerer import Answerer
from ravqa.answering.choices import choice_of
from ravqa.answering.extract import Extraction, short_answer
from ravqa.answering.rules import answering_config
from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure
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
        ("two cats: both asleep", "two cats"),
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


class Scores(Script):
    """Scores an answer by a table of its passage; generates nothing."""

    scores_answers = True

    def score(self, prompts, answers):
        return [self.says[p.text[-1]][a] for p, a in zip(prompts, answers, strict=True)]


TWO = Question(1, "Which?", choices=("ash", "oak"), correct_choice=0)
SCORES = Scores(a={"ash": -1.0, "oak": -3.0}, b={"ash": -4.0, "oak": -1.5})


def test_the_likeliest_choice_by_hand(ask):
    """log p(z) = log softmax(9, 8); P(c) = sum of p(z) p(c | z)."""
    answer = ask(TWO, SCORES, "ab", decision="likeliest_choice")
    first = 1 / (1 + math.exp(-1))
    ash = first * math.exp(-1) + (1 - first) * math.exp(-4)
    oak = first * math.exp(-3) + (1 - first) * math.exp(-1.5)
    assert (answer.text, answer.raw, answer.decision) == ("ash", "ash", "likeliest_choice")
    assert answer.log_prob == pytest.approx(math.log(ash / (ash + oak)))
    assert answer.joint
    a, b = answer.drafts
    assert [(d.text, d.log_prob, d.passage_ids) for d in (a, b)] == [
        ("ash", -1.0, ("a",)),
        ("ash", -4.0, ("b",)),
    ]
    assert (a.prior, b.prior) == pytest.approx((first, 1 - first))
    assert a.score == pytest.approx(math.log(first) - 1)
    assert a.posterior == pytest.approx(first * math.exp(-1) / ash)
    # With equal passages, e^-1 + e^-4 = .386 still wins over e^-3 + e^-1.5 = .273.
    assert ask(TWO, SCORES, "ab", decision="likeliest_choice", prior="uniform").text == "ash"
    alone = ask(TWO, SCORES, "b", decision="likeliest_choice")
    assert (alone.text, alone.joint) == ("oak", False)
    bare = Scores(**{"?": {"ash": -2.0, "oak": -1.0}})
    nothing = ask(TWO, bare, "", decision="likeliest_choice", passages=1)
    assert (nothing.text, [d.passage_ids for d in nothing.drafts]) == ("oak", [()])


@given(st.lists(st.lists(st.floats(-20, 0), min_size=3, max_size=3), min_size=1, max_size=3))
def test_the_likeliest_choice_equals_brute_force(tmp_path_factory, rows):
    prompt = tmp_path_factory.getbasetemp() / "likeliest.jinja"
    if not prompt.exists():
        prompt.write_text("{% for p in passages %}{{ p.text }}{% endfor %}")
    names = "abc"[: len(rows)]
    choices = ("x", "y", "z")
    table = {n: dict(zip(choices, row, strict=True)) for n, row in zip(names, rows, strict=True)}
    settings = {"prompt": str(prompt), "passages": len(rows), "cache": False, "prior": "uniform"}
    tested = Answerer(
        answering_config({**settings, "decision": "likeliest_choice"}), Scores(**table)
    )
    found = [(Hit(n, 0.0, i + 1), Passage(n, n)) for i, n in enumerate(names)]
    [answer] = tested.answer([Question(1, "?", choices=choices)], [found])
    sums = {c: sum(math.exp(table[n][c]) for n in names) for c in choices}
    assert sums[answer.text] == pytest.approx(max(sums.values()))
    share = sums[answer.text] / sum(sums.values())
    assert math.exp(answer.log_prob) == pytest.approx(share)


def test_the_likeliest_choice_needs_choices_probabilities_and_a_reader_that_scores(ask):
    decision = {"decision": "likeliest_choice"}
    found = ask(Question(1, "Which?"), SCORES, "ab", **decision)
    assert found == Failure(
        "answering.decision likeliest_choice chooses among a question's choices, but this "
        "question has none"
    )
    nothing = Scores(a=dict.fromkeys(TWO.choices, -math.inf))
    found = ask(TWO, nothing, "a", **decision)
    assert found == Failure("the reader gives every choice the probability 0")
    broken = Scores(a={"ash": -1.0, "oak": Failure("refused")})
    assert ask(TWO, broken, "a", **decision) == Failure("refused")
    with pytest.raises(UserError) as error:
        ask(TWO, Script(), "a", **decision)
    assert str(error.value) == (
        "answering.decision likeliest_choice scores the choices as answers, which this reader "
        "does not give: choose top1, concat, joint_max, marginal or vote"
    )


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"decision": "likeliest_choice", "choices": "free"}, "likeliest_choice"),
        ({"decision": "vote"}, "named"),
        ({"decision": "vote", "choices": "equal"}, "equal"),
    ],
)
def test_how_an_answer_becomes_a_choice_has_a_name(options, name):
    assert Answerer(answering_config({"cache": False, **options}), SCORES).choice_rule == name
