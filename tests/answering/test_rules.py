"""A decision rule of one's own, the rules' options, and rules that break their contract."""

import json
import sys

import pytest
from abilities import give
from study_files import call, write_data, write_study

from ravqa.answering import RULES
from ravqa.answering.answerer import Answerer
from ravqa.answering.config import AnsweringConfig
from ravqa.answering.rules import answering_config, rule_class
from ravqa.answering.rules.base import DecisionRule
from ravqa.core import registry
from ravqa.core.errors import ContractError, UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.registry import Entry
from ravqa.readers.base import Generation, Reader

AGREED = """
from collections import Counter

from ravqa.answering.rules.base import PerPassage
from ravqa.answering import RULES

RULES.add("agreed", "agreed:Agreed", "the last passage's answer, unless others agree on one")


class Agreed(PerPassage):
    class Config(PerPassage.Config):
        least: int = 2

    def decide(self, case, drafts):
        said = Counter(draft.text for draft in drafts)
        answer, votes = said.most_common(1)[0]
        places = [i for i, draft in enumerate(drafts) if draft.text == answer]
        return self.chosen(places[0] if votes >= self.config.least else len(drafts) - 1, drafts)
"""


class Echo(Reader):
    """Answers with the passage."""

    fingerprint = weights = "echo"

    def __init__(self, *abilities):
        give(self, abilities)

    def generate(self, prompts):
        passages = [p.text.rpartition("Passage: ")[2].partition("\n")[0] for p in prompts]
        return [Generation(passage, -1.0, 1) for passage in passages]


def found(*texts):
    return [(Hit(f"{i}", 0.0, i), Passage(f"{i}", text)) for i, text in enumerate(texts, 1)]


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.setenv("RAVQA_PLUGINS", "agreed")
    monkeypatch.setattr(RULES, "_entries", dict(RULES._entries))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "agreed.py").write_text(AGREED, encoding="utf-8")
    registry.load_plugins.cache_clear()
    yield
    registry.load_plugins.cache_clear()
    sys.modules.pop("agreed", None)


@pytest.mark.usefixtures("fresh_cache", "plugin")
def test_one_file_adds_a_rule_to_runs_and_studies(tmp_path, capsys):
    data = write_data(tmp_path / "data")
    rule = ("answering.decision=agreed", "answering.passages=3")
    arguments = ["run", "--dataset", "jsonl", "--data", data, "--pipeline", "bm25-retrieval"]
    arguments += [word for setting in rule for word in ("--set", setting)]
    code, _, err = call(capsys, *arguments, "--output", tmp_path / "run")
    assert code == 0, err
    samples = [
        json.loads(line)
        for line in (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(samples) == 24
    three = [s for s in samples if len(s["drafts"]) == 3]
    assert three
    for sample in three:
        texts = [draft["text"] for draft in sample["drafts"]]
        agreed = [text for text in texts if texts.count(text) > 1]
        assert sample["answer"] == (agreed or texts[::-1])[0]
        assert sample["decision"] == "agreed"
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    answering = results["provenance"]["answering"]
    assert (answering["decision"], answering["least"]) == ("agreed", 2)
    assert "temperature" not in answering  # of rules that were not used

    code, _, err = call(capsys, *arguments, "--set", "answering.last=3", "--output", "x")
    assert code == 2
    assert "answering: unknown key 'last': did you mean least" in err
    code, out, _ = call(capsys, "ls", "rules")
    assert code == 0
    assert "agreed" in out
    assert "joint_max" in out

    levels = {
        "agreed": {"answering.decision": "agreed", "answering.least": 3},
        "vote": {"answering.decision": "vote"},
    }
    write_study(data / "rules.yaml", axes={"rule": levels})
    code, out, err = call(capsys, "study", data / "rules.yaml", "--output", tmp_path / "study")
    assert code == 0, err
    assert "agreed" in out


def test_an_unknown_rule_is_refused_with_near_names():
    with pytest.raises(UserError, match=r"no decision rule 'joint-max': did you mean joint_max"):
        answering_config({"decision": "joint-max"})
    with pytest.raises(UserError, match=r"no decision rule 'voting': did you mean vote"):
        Answerer(AnsweringConfig(decision="voting"), Echo())
    with pytest.raises(UserError, match=r"^answering: key 'decision': input should be a valid str"):
        answering_config({"decision": ["vote"]})


def test_options_are_those_of_the_rule():
    assert answering_config({"decision": "vote", "merge": "exact"}).merge == "exact"
    assert not hasattr(answering_config({"decision": "vote"}), "temperature")
    with pytest.raises(UserError, match="answering: unknown key 'temprature': did you mean temper"):
        answering_config({"temprature": 2})
    with pytest.raises(UserError, match=r"answering: key 'temperature': .* greater than 0, got -1"):
        answering_config({"temperature": -1})


def test_an_option_of_another_rule_has_no_effect_but_a_bad_value_is_refused():
    # So that the levels of a study can change the rule alone.
    plain = answering_config({"decision": "top1"})
    assert answering_config({"decision": "top1", "temperature": 2, "merge": "lower"}) == plain
    with pytest.raises(UserError, match=r"answering: key 'temperature': .* greater than 0, got -1"):
        answering_config({"decision": "top1", "temperature": -1})


@pytest.mark.parametrize("name", [name for name, _ in RULES])
def test_options_of_answering_alone_are_enough_for_every_rule(name, fresh_cache):
    reader = Echo("log_probs", "score", "next_token")
    reader.score = lambda prompts, answers: [-1.0 for _ in prompts]
    [answer] = Answerer(AnsweringConfig(decision=name), reader).answer(
        [Question(1, "What?", choices=("koala", "bear"))], [found("koala")]
    )
    assert answer.decision == name
    assert rule_class(name).__doc__


class Short(DecisionRule):
    """Forgets the last question."""

    def groups(self, found):
        return [[pair] for pair in found]

    def decide(self, case, drafts):
        return self.chosen(0, drafts)

    def answer(self, cases, reader):
        return super().answer(cases, reader)[:-1]


class Wordy(Short):
    """Answers with a text."""

    def answer(self, cases, reader):
        return ["koala" for _ in cases]


class Picky(Short):
    """Raises for one question."""

    def decide(self, case, drafts):
        if case.question.question == "Where?":
            raise LookupError("nothing is agreed\nat all")
        return super().decide(case, drafts)

    def answer(self, cases, reader):
        return DecisionRule.answer(self, cases, reader)


def test_an_error_of_a_rule_costs_the_question_alone(monkeypatch, fresh_cache):
    monkeypatch.setitem(RULES._entries, "odd", Entry(f"{__name__}:Picky", "for tests"))
    questions = [Question(i, text) for i, text in enumerate(["What?", "Where?", "Who?"])]
    tested = Answerer(AnsweringConfig(decision="odd", passages=2), Echo())
    one, failed, other = tested.answer(questions, [found("a", "b")] * 3)
    assert failed == Failure("answering.decision odd: nothing is agreed")
    assert one.text
    assert other.text


class Lacking(DecisionRule):
    """Has no rule."""


class Other:
    """Is no rule."""


class Optionless(Short):
    """Its options are not those of a rule."""

    class Config:
        pass


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("Short", "Short breaks its contract: it returned 1 results from answer for 2 items"),
        ("Wordy", "Wordy breaks its contract: it returned from answer str instead of an Answer"),
        ("Lacking", "rule 'odd' (test_rules:Lacking) lacks decide, groups, which ravqa.answering"),
        ("Other", "rule 'odd' (test_rules:Other) is not a subclass of ravqa.answering.rules.bas"),
        (
            "Optionless",
            "Optionless breaks its contract: its Config is not a subclass of ravqa",
        ),
    ],
)
def test_a_rule_that_breaks_its_contract_is_named_in_one_line(
    rule, message, monkeypatch, fresh_cache
):
    monkeypatch.setitem(RULES._entries, "odd", Entry(f"{__name__}:{rule}", "for tests"))
    questions = [Question(1, "What?"), Question(2, "Where?")]
    with pytest.raises(UserError) as raised:
        Answerer(AnsweringConfig(decision="odd"), Echo()).answer(questions, [found("a", "b")] * 2)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, ContractError)
