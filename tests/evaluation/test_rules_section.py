"""The same answers under several rules: scores, what is left out, where they disagree."""

import math
import sys
import types

import pytest
from released_rules import ContainsJudge, examples, given, percent_of, rule_of

from ravqa.core.errors import ContractError, ServerError, UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.datasets.base import Dataset
from ravqa.evaluation.rules import check_rules, choose_rules, form_of, rules_section, spread
from ravqa.evaluation.schema import RulesSection, validated
from ravqa.metrics import METRICS
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.exact_match import ExactMatch
from ravqa.metrics.judges.base import Judge, NotAttempted
from ravqa.runs.rule_tables import notes_of
from ravqa.testing.metrics import check_metric

OWN = {"infoseek": "infoseek", "okvqa": "vqa_accuracy", "evqa": "evqa_score"}


def dataset_of(questions, metric):
    return Dataset("own", "own", "test", questions, metric, fingerprint="x")


def asked(form, first=None):
    """The first examples of a form, or all: their dataset, and samples with the predictions."""
    questions, records = (found[:first] for found in examples(form))
    samples = {
        q.question_id: {"answer": record.answer}
        for q, record in zip(questions, records, strict=True)
    }
    return dataset_of(questions, OWN[form]), samples


@pytest.mark.parametrize("form", OWN)
def test_every_rule_gives_the_released_aggregate(form):
    dataset, samples = asked(form)
    plain = ("judge", "flashrag", "ultrarag", "mmsearch_r1")  # all of them are means
    names = [n for n in given(form)["rules"] if not any(word in n for word in plain)]
    section = rules_section(dataset, samples, names, seed=1, examples=0)
    validated(RulesSection, section, "rules")
    scores = {row["rule"]: row["score"] for row in section["rules"]}
    assert set(scores) == {OWN[form], *names}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    for name in names:
        wanted = percent_of(given(form)["rules"][name]["aggregate"])
        assert scores[name] == pytest.approx(wanted, abs=0.01), name
    twin = {"infoseek": "infoseek.official", "okvqa": "vqa.official"}.get(form)
    assert twin is None or scores[twin] == pytest.approx(scores[OWN[form]], abs=0.01)


def test_a_mean_over_a_prefix_says_over_how_many_questions():
    dataset, samples = asked("infoseek")
    section = rules_section(dataset, samples, ["ravqa.infoseek"], seed=1)
    row = next(row for row in section["rules"] if row["rule"] == "ravqa.infoseek")
    scores = given("infoseek")["rules"]["ravqa.infoseek"]["scores"]
    assert row["questions"] == scores.index(None) == 20
    assert row["without_score"] == scores.count(None)
    assert "leaves the loop" in row["reason"]


def test_all_asks_the_rules_that_fit_and_says_why_others_are_left_out():
    dataset, samples = asked("evqa", 200)
    assert any("<answer>" in sample["answer"] for sample in samples.values())
    section = rules_section(dataset, samples, ["all"], seed=1, examples=0)
    scored = {row["rule"] for row in section["rules"]}
    needs_judge = {name for name, _ in METRICS if METRICS.get(name).needs_judge}
    fitting = {name for name, _ in METRICS if "evqa" in METRICS.get(name).forms}
    assert scored == fitting - needs_judge
    assert section["left_out"] == dict.fromkeys(
        sorted(fitting & needs_judge, key=list(section["left_out"]).index),
        "it asks a judge (--judge)",
    )
    untagged = {q: {"answer": s["answer"].replace("<answer>", "")} for q, s in samples.items()}
    section = rules_section(dataset, untagged, ["all"], seed=1, judge=ContainsJudge())
    tagged = ("mmsearch_r1.reward_em", "mmsearch_r1.reward_subem")
    tagged += ("promsa.em_score", "promsa.llm_score")
    assert section["left_out"] == dict.fromkeys(
        tagged, "no answer has <answer>, without which it gives 0"
    )
    named = rules_section(dataset, untagged, ["promsa.em_score"], seed=1)
    assert {row["rule"]: row["score"] for row in named["rules"]}["promsa.em_score"] == 0


def test_a_judge_is_asked_for_the_rules_that_need_one():
    dataset, samples = asked("evqa")
    names = [n for n in given("evqa")["rules"] if n.endswith("judge_contains")]
    rules = [rule_of(name)[0].name for name in names]
    section = rules_section(dataset, samples, rules, seed=1, judge=ContainsJudge())
    scores = {row["rule"]: row["score"] for row in section["rules"]}
    for name, rule in zip(names, rules, strict=True):
        wanted = percent_of(given("evqa")["rules"][name]["aggregate"])
        assert scores[rule] == pytest.approx(wanted, abs=0.001)


class GoneJudge(Judge):
    name = fingerprint = "gone"

    def judge(self, questions, references, candidates):
        return [Failure("the server is gone", fatal=True)] * len(candidates)


def test_a_judge_that_is_gone_ends_it():
    with pytest.raises(ServerError, match="the server is gone"):
        rules_section(*asked("evqa"), ["evqa.official"], seed=1, judge=GoneJudge())


def test_rules_that_cannot_score_are_refused_by_name():
    dataset, _ = asked("okvqa")
    for name, message in {
        "wikiprf.test": "--rules wikiprf.test: it is for questions that are InfoSeek's, with "
        "'answer_eval'; these are VQA's, with ten answers",
        "promsa.llm_score": "--rules promsa.llm_score: it asks a judge (--judge)",
    }.items():
        with pytest.raises(UserError) as e:
            choose_rules(dataset, [name], [], judge=False)
        assert str(e.value) == message
    with pytest.raises(
        UserError, match=r"--rules: no metric 'wikiprf': did you mean wikiprf\.test"
    ):
        check_rules(["all", "wikiprf"])
    check_rules(["all", "wikiprf.test"])


def test_the_form_is_the_metrics_or_what_the_questions_have():
    class Unknown(ExactMatch):
        forms = frozenset()

    ten = ("a",) * 10
    for question, form in (
        (Question(1, "q", answers=ten, answer_eval=("a",)), "infoseek"),
        (Question(1, "q", answers=ten, question_type="2_hop"), "evqa"),
        (Question(1, "q", answers=ten, question_type="one"), "vqa"),
        (Question(1, "q", answers=("a",)), "texts"),
    ):
        assert form_of(Unknown(), [question]) == form
        assert form_of(ExactMatch(), [question]) == "texts"
        assert form_of(METRICS.get("vqa_accuracy")(), [question]) == "vqa"
    assert form_of(Unknown(), []) == "texts"


def test_examples_are_those_on_which_most_rules_disagree():
    questions = [Question(i, f"q{i}", answers=("oak",), image_id=i) for i in range(4)]
    texts = ["oak", "an oak tree", None, "The answer is oak, not elm"]
    samples = {i: {"answer": text} for i, text in enumerate(texts)}
    rules = ["flashrag.em", "flashrag.acc", "flashrag.precision"]
    section = rules_section(dataset_of(questions, "exact_match"), samples, rules, seed=1)
    assert section["disputed"] == 2
    first, second = section["examples"]
    assert (first["question_id"], first["disagree"]) == (1, 2)  # precision is a half there
    assert first["right"] == ["flashrag.acc", "flashrag.precision"]
    assert first["wrong"] == ["exact_match", "flashrag.em"]
    assert (second["question_id"], second["disagree"]) == (3, 1)
    few = rules_section(dataset_of(questions, "exact_match"), samples, rules, seed=1, examples=1)
    assert few["examples"] == [first]
    assert spread(section) == (
        "this answer set scores 25.0 (exact_match) to 75.0 (flashrag.acc), depending on the rule; "
        "25.0 by its own (exact_match)"
    ).replace("25.0 (exact_match) to", f"25.0 ({section['rules'][-1]['rule']}) to")


def test_where_all_rules_agree_the_score_is_told_once():
    questions = [Question(i, f"q{i}", answers=("oak",), image_id=i) for i in range(4)]
    samples = {i: {"answer": "elm"} for i in range(4)}
    rules = ["flashrag.em", "flashrag.acc"]
    section = rules_section(dataset_of(questions, "exact_match"), samples, rules, seed=1)
    assert spread(section) == "this answer set scores 0.0 by all 3 rules"


def test_one_rule_has_no_spread_and_questions_that_it_cannot_use_count_as_without_score():
    dataset, samples = asked("okvqa")
    section = rules_section(dataset, samples, [], seed=1)
    assert (spread(section), len(section["rules"]), section["examples"]) == ("", 1, [])
    questions = [
        Question(i, "q", answers=("x",), answer_eval=(form,), question_type="String", image_id=i)
        for i, form in enumerate(["x", ""])
    ]
    samples = {i: {"answer": "x"} for i in range(2)}
    section = rules_section(dataset_of(questions, "infoseek"), samples, ["wikiprf.test"], seed=1)
    row = next(row for row in section["rules"] if row["rule"] == "wikiprf.test")
    assert (row["score"], row["questions"], row["without_score"]) == (50.0, 2, 1)
    assert row["reason"] == "an empty text in 'answer_eval'"
    assert not any(math.isnan(row["score"]) for row in section["rules"])
    only = dataset_of(questions[1:], "infoseek")
    section = rules_section(only, samples, ["wikiprf.test"], seed=1)
    assert section["left_out"] == {
        "wikiprf.test": "no question is in its mean (an empty text in 'answer_eval')"
    }


class SlowToAgree(Judge):
    """Accepts what contains the reference; has no verdict on one answer, and knows a refusal."""

    name = fingerprint = "scripted"

    def judge(self, questions, references, candidates):
        return [
            {"unclear": math.nan, "no idea": NotAttempted()}.get(
                candidate, float(reference in candidate)
            )
            for reference, candidate in zip(references, candidates, strict=True)
        ]


def test_a_judges_verdicts_and_its_agreement_with_the_own_rule():
    questions = [Question(i, "q", answers=("oak", "elm"), image_id=i) for i in range(20)]
    texts = ["oak", "an oak tree", "no idea", "unclear", None] * 4
    samples = {i: {"answer": text} for i, text in enumerate(texts)}
    own = dataset_of(questions, "exact_match")
    section = rules_section(own, samples, ["judge"], seed=1, judge=SlowToAgree())
    validated(RulesSection, section, "rules")
    row = next(row for row in section["rules"] if row["rule"] == "judge")
    assert (row["score"], row["questions"], row["without_score"]) == (40.0, 20, 4)
    assert row["reason"] == "the judge gave no verdict"
    assert row["not_attempted"] == 4
    # Of the 16 with a verdict, they differ on the four sentences.
    agreement = row["agreement"]
    assert (agreement["share"], agreement["questions"]) == (75.0, 16)
    low, high = agreement["interval_95"]
    assert 45 < low < 75 < high <= 100
    assert "agreement" not in next(r for r in section["rules"] if r["rule"] == "exact_match")
    told = f"judge says the same as exact_match on 75.0 [{low:.1f}, {high:.1f}] % of 16 questions"
    assert {told, "judge: 4 answers not attempted"} < set(notes_of(section))


def test_the_rule_judge_needs_a_judge():
    metric = METRICS.get("judge")()
    question = Question(1, "q", answers=("The oak",))
    with pytest.raises(UserError, match=r"^the rule 'judge' asks a judge: give one \(--judge\)$"):
        metric.scores([question], [AnswerRecord("oak")])
    assert metric.score(question, AnswerRecord("The oak"), SlowToAgree()) == 1
    assert metric.score(question, AnswerRecord("unclear"), SlowToAgree()) == 0
    assert metric.matches(question, "oak!")
    assert not metric.matches(question, "oak tree")
    settings = metric.settings(SlowToAgree())
    assert settings == {"judge": "scripted", "judge_fingerprint": "scripted"}
    check_metric(metric, [question], SlowToAgree())


class Own(ExactMatch):
    """A rule of one's own that fails."""

    name = "own"

    def score(self, question, record, judge=None):
        return 1 / 0


def test_a_rule_of_ones_own_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    monkeypatch.setitem(sys.modules, "own_rule", types.SimpleNamespace(Own=Own))
    METRICS.add("own", "own_rule:Own", "fails")
    own = dataset_of([Question(1, "q", answers=("a",))], "exact_match")
    what = "Own breaks its contract: it raises ZeroDivisionError from scores: division by zero"
    with pytest.raises(ContractError, match=what):
        rules_section(own, {1: {"answer": "a"}}, ["own"], seed=1)
