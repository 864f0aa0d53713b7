"""The conformance suite of decision rules: whole parts pass, broken ones do not."""

from dataclasses import replace

import pytest
from own_parts import from_docs

from ravqa.answering import RULES
from ravqa.answering.rules import answering_config
from ravqa.testing import check_rule

Agreed = from_docs("agreed.py")["Agreed"]


@pytest.mark.parametrize("name", [name for name, _ in RULES])
@pytest.mark.parametrize("more", [{}, {"marginal": "thorough", "empty_passage": True}], ids=str)
def test_bundled_rules(name, more):
    kind = RULES.get(name)
    own = {k: v for k, v in more.items() if k in kind.Config.model_fields}
    passages = 1 if name == "top1" else 3
    check_rule(kind(answering_config({"decision": name, "passages": passages, **own})))


def test_the_rule_of_the_docs():
    check_rule(Agreed(Agreed.Config(passages=3)))


class Loses(Agreed):
    def groups(self, found):
        return []


class Reversed(Agreed):
    def groups(self, found):
        return super().groups(found)[::-1]


class Single(Agreed):
    chooses = False


class Heavy(Agreed):
    def log_priors(self, scores):
        return [0.0 for _ in scores]


class First(Agreed):
    def answer(self, cases, reader):
        return super().answer(cases[:1], reader)


class Invents(Agreed):
    def decide(self, case, drafts):
        return replace(super().decide(case, drafts), text="granite")


class Moody(Agreed):
    def answer(self, cases, reader):
        return super().answer(cases[:1], reader) * len(cases)


class Crashes(Agreed):
    def drafts(self, cases, reader):
        return [
            found if isinstance(found, list) else 1 / 0 for found in super().drafts(cases, reader)
        ]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Loses, "groups returns at least one prompt"),
        (Reversed, "the prompt with the best passage first"),
        (Single, "groups returns one prompt, got 2"),
        (Heavy, "log_priors returns a log-probability per prompt, which sum to 1"),
        (First, "an answer per question"),
        (Invents, "an answer of the reader"),
        (Moody, "the same answer whatever is asked with it|with a draft per prompt"),
        (Crashes, "Crashes raises ZeroDivisionError"),
    ],
)
def test_a_rule_that_breaks_its_contract(kind, sentence):
    with pytest.raises(AssertionError, match=f"({sentence}).*ravqa.answering.rules.base"):
        check_rule(kind(kind.Config(passages=3)))


class Hasty(Agreed):
    """Asks question by question, and inherits that it asks once."""

    asks_once = True

    def answer(self, cases, reader):
        return [super(Hasty, self).answer([case], reader)[0] for case in cases]


def test_how_often_a_rule_asks():
    with pytest.raises(AssertionError, match=r"answer calls the reader once .* got 4 calls"):
        check_rule(Hasty(Hasty.Config(passages=3)))
    assert Agreed(Agreed.Config()).asks_once
    once = {
        name for name, _ in RULES if RULES.get(name)(answering_config({"decision": name})).asks_once
    }
    assert {name for name, _ in RULES} - once == {"mixture"}
    thorough = answering_config({"decision": "marginal", "marginal": "thorough"})
    assert not RULES.get("marginal")(thorough).asks_once
