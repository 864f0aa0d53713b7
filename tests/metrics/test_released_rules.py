"""Released scoring rules give what the released code gives; see tests/data/scoring-rules."""

from dataclasses import replace
from functools import cache

import pytest
from released_rules import FORMS, ContainsJudge, examples, given, percent_of, question_of, rule_of

from ravqa.core.errors import PromptError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.metrics import METRICS
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.judges.base import Judge, NoVerdict
from ravqa.metrics.released import RELEASED, reag

CASES = [(form, name) for form in FORMS for name in given(form)["rules"]]
FORM_NAMES = {"infoseek": "infoseek", "okvqa": "vqa", "evqa": "evqa"}


@cache
def outcomes_of(form, name):
    metric, judge = rule_of(name)
    return metric.scores(*examples(form), judge)


def aggregate(metric, questions, records, outcomes):
    """The summary over the questions that count, as results have it."""
    kept = metric.counted(records, outcomes)
    return metric.summary(
        [q for q, keep in zip(questions, kept, strict=True) if keep],
        [0.0 if isinstance(o, Failure) else o for o, k in zip(outcomes, kept, strict=True) if k],
    )


@pytest.mark.parametrize(("form", "name"), CASES)
def test_scores_are_those_of_the_released_code(form, name):
    released = given(form)["rules"][name]
    scale = 100 if released["scale"].startswith("percent") else 1
    outcomes = outcomes_of(form, name)
    got = [None if isinstance(outcome, Failure) else scale * outcome for outcome in outcomes]
    if any(isinstance(score, float) for score in released["scores"]):
        assert got == pytest.approx(released["scores"], abs=1e-9)
    else:
        assert got == released["scores"]


@pytest.mark.parametrize(("form", "name"), CASES)
@pytest.mark.parametrize("part", ["aggregate", "aggregate_realistic"])
def test_aggregates_are_those_of_the_released_code(form, name, part):
    released = given(form)["rules"][name]
    metric, _ = rule_of(name)
    rows = [
        row
        for *row, example in zip(
            *examples(form), outcomes_of(form, name), given(form)["examples"], strict=True
        )
        if part == "aggregate" or example["part"] == "realistic"
    ]
    found = aggregate(metric, *map(list, zip(*rows, strict=True)))
    wanted = released[part]
    if "final_score" in wanted:
        assert found["score"] == wanted["final_score"]
        for split in ("unseen_question", "unseen_entity"):
            assert found["splits"][split] == wanted[f"{split}_score"]
        return
    if name.startswith("mmsearch_r1.reward"):
        assert found["right"] == pytest.approx(100 * wanted["score"], abs=1e-4)
    rounded = "printed" in str(wanted) or "overall" in wanted
    assert found["score"] == pytest.approx(percent_of(wanted), abs=0.005 if rounded else 1e-4)
    for key in ("single_hop", "two_hop", "single_hop_of_the_paper"):
        if key in wanted:
            assert found[key] == pytest.approx(100 * wanted[key], abs=1e-4)


@pytest.mark.parametrize("name", ["infoseek.official", "comem.infoseek"])
def test_infoseeks_mean_is_over_the_answered_questions(name):
    """Blank predictions that are not in the file are neither right nor wrong."""
    questions, records = examples("infoseek")
    asked = [replace(r, answer=r.answer if r.answer.strip() else None) for r in records]
    metric, _ = rule_of(name)
    wanted = given("infoseek")["rules"][name]["aggregate_without_blank_predictions"]
    outcomes = metric.scores(questions, asked)
    assert sum(metric.counted(asked, outcomes)) == wanted["n"]
    found = aggregate(metric, questions, asked, outcomes)
    assert found["score"] == wanted["final_score"]
    assert found["splits"]["unseen_question"] == wanted["unseen_question_score"]


STOPS = [
    (form, row["example"], name, outcome)
    for form in FORMS
    for row in given(form)["raises"]
    for name, outcome in row["outcomes"].items()
    if "(" not in name
]


@pytest.mark.parametrize(("form", "example", "name", "outcome"), STOPS)
def test_where_released_code_stops_there_is_no_score(form, example, name, outcome):
    """At a prediction, a failure; at a question's references, an error that `problem` foretells."""
    metric, judge = rule_of(name)
    question, record = question_of(form, example), AnswerRecord(example["prediction"])
    if not isinstance(outcome, dict):
        assert metric.problem(question) == ""
        assert metric.scores([question], [record], judge) == [outcome]
    elif problem := metric.problem(question):
        assert "\n" not in problem
        with pytest.raises(ValueError, match=r"\w"):
            metric.scores([question], [record], judge)
    else:
        [found] = metric.scores([question], [record], judge)
        assert isinstance(found, Failure)
        assert "the released code stops at the number '-." in found.reason
        with pytest.raises(PromptError, match="the released code stops"):
            metric.score(question, record, judge)


def test_every_released_rule_is_a_metric_with_its_source():
    others = {"pmsr.llm", "reag.infoseek"}  # of which there are no scores
    tested = {rule_of(name)[0].name for _, name in CASES} | others
    assert tested == RELEASED.keys() <= {name for name, _ in METRICS}
    forms = {}
    for form, name in CASES:
        forms.setdefault(rule_of(name)[0].name, set()).add(FORM_NAMES[form])
    for form, name in CASES:
        metric, judge = rule_of(name)
        source = given(form)["rules"][name]["source"]
        assert RELEASED[metric.name][0].endswith(type(metric).__name__)
        assert metric.forms - {"texts"} == forms[metric.name]
        assert metric.needs_judge == metric.uses_judge == (judge is not None)
        if "its copy of" in source["repository"]:  # the commit is the copy's
            assert metric.source.repository in source["repository"]
            continue
        assert metric.source.repository == source["repository"].partition(" (")[0]
        assert metric.source.commit == source["commit"]
        assert metric.settings(judge)["source"] == str(metric.source)


class FailingJudge(Judge):
    name = "failing"
    fingerprint = "failing"

    def judge(self, questions, references, candidates):
        by_candidate = {"no reply": Failure("no reply"), "unclear": NoVerdict("neither")}
        return [by_candidate.get(candidate, 1.0) for candidate in candidates]


def test_calls_of_pixelrags_judge_that_fail_leave_its_mean():
    metric, _ = rule_of("pixelrag.judge_contains")
    questions = [Question(i, "q", answers=("x",), question_type="automatic") for i in range(3)]
    records = [AnswerRecord(text) for text in ("no reply", "unclear", "right")]
    outcomes = metric.scores(questions, records, FailingJudge())
    assert outcomes == [Failure("no reply"), NoVerdict("neither"), 1.0]
    assert aggregate(metric, questions, records, outcomes) == {"score": 50.0}
    assert metric.score(questions[1], records[1], FailingJudge()) == 0
    with pytest.raises(PromptError, match="no reply"):
        metric.score(questions[0], records[0], FailingJudge())


def test_a_judge_is_asked_once_about_what_is_not_settled():
    asked = []

    class Counting(ContainsJudge):
        def judge(self, questions, references, candidates):
            asked.append(list(zip(questions, references, candidates, strict=True)))
            return super().judge(questions, references, candidates)

    metric, _ = rule_of("promsa.llm_score.judge_contains")
    questions = [Question(i, f"q{i}", answers=("oak", "elm")) for i in range(4)]
    texts = ("<answer>Oak</answer>", "no tag", "<answer>an oak tree</answer>", None)
    scores = metric.scores(questions, [AnswerRecord(text) for text in texts], Counting())
    assert scores == [1, 0, 1, 0]
    assert asked == [[("q2", "oak", "an oak tree"), ("q2", "elm", "an oak tree")]]


@pytest.mark.parametrize(
    ("name", "form", "problem"),
    [
        ("wikiprf.test", {"range": [1, 2]}, "whose 'wikidata' is not a number"),
        ("wikiprf.test", {"wikidata": "5", "range": [1, 2]}, "whose 'wikidata' is not a number"),
        ("ravqa.infoseek", {"wikidata": 5}, 'needs [{"range": [low, high]}]'),
    ],
)
def test_references_that_a_rule_cannot_read_are_a_problem(name, form, problem):
    metric, _ = rule_of(name)
    question = Question(1, "q", answers=("5",), answer_eval=(form,), question_type="Numerical")
    assert problem in metric.problem(question)


@pytest.mark.parametrize(
    ("answer", "score"),
    [("{'range': 1}", 1), ("{'range': ['a', 'b']}", 1), ("(" * 5000, 0), ("[1, ", 1)],
)
def test_texts_that_look_like_literals_are_only_texts(answer, score):
    metric, _ = rule_of("pmsr.cem.rows_of_main_raw_string")
    question = Question(1, "q", answers=(answer,), question_type="automatic")
    records = [AnswerRecord(text) for text in (f"is it {answer}?", "no")]
    assert metric.scores([question] * 2, records) == [1, 0]
    # Nothing is left of parentheses after E-VQA's clean-up, which BERAG counts as wrong.
    berag, _ = rule_of("berag.evqa.judge_never")
    assert berag.scores([question], [AnswerRecord(answer)]) == [score]


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("<think>x</think><answer>a koala</answer><answer>bear</answer>", "a koala"),
        ("<answer> koala\n</answer>", "koala"),  # a line ends inside: what follows the tag
        ("<think>bear</think> koala <answer>panda", "panda"),
        ("it is</think>koala</think>bear", "koalabear"),
        ("<think>koala", "koala"),
        ("a koala", "a koala"),
    ],
)
def test_reags_answer_is_extracted_before_it_is_scored(prediction, answer):
    assert reag.extracted(prediction) == answer
    metric, _ = rule_of("reag.infoseek")
    question = Question(1, "q", answer_eval=(answer,), question_type="String", split="val")
    assert metric.scores([question], [AnswerRecord(prediction)]) == [1.0]
    official, _ = rule_of("infoseek.official")
    plain = official.scores([question], [AnswerRecord(prediction)])
    assert plain == [float("<" not in prediction)]


@pytest.mark.parametrize("name", ["infoseek.official", "comem.infoseek", "wikiprf.test"])
def test_a_number_that_stops_the_code_does_so_after_the_two_that_count(name):
    """All numbers are read before the first two are taken."""
    form = {"wikidata": 1, "range": [1, 2]}
    question = Question(1, "q", answers=("1",), answer_eval=(form,), question_type="Numerical")
    metric, _ = rule_of(name)
    right, stops = metric.scores([question] * 2, [AnswerRecord("1"), AnswerRecord("1, 1, -.5.3")])
    assert right == 1.0
    reason = "the released code stops at the number '-.5.3' in the prediction"
    assert stops == Failure(reason)
