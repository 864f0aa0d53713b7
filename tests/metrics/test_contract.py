"""The contract of metrics and judges: defaults, what is refused, and the words that say so."""

import inspect
import math
import re

import numpy as np
import pytest
from scripted_server import chat

import ravqa.metrics
from ravqa.core.errors import ContractError, UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.core.settings import fingerprint
from ravqa.metrics import diagnostics, evqa, infoseek, prrecall, ranking, vqa
from ravqa.metrics.base import AnswerMetric, AnswerRecord, Submission, checked_scores, percent
from ravqa.metrics.exact_match import ExactMatch
from ravqa.metrics.judges.base import Judge
from ravqa.metrics.judges.cached import CachedJudge
from ravqa.metrics.judges.llm import PROMPT, LLMJudge
from ravqa.metrics.statistics.intervals import bootstrap, paired_test


class Own(AnswerMetric):
    """Half a point for a long answer; with a judge, what it says."""

    name = "own"
    label = "Own"
    rule = "length"

    def score(self, question, record, judge=None):
        if judge is not None:
            return judge(question, record)
        return min(1, len(record.answer) / 4)


QUESTIONS = [Question(i, f"q{i}", answers=("abcd",)) for i in range(3)]
RECORDS = [AnswerRecord("ab"), AnswerRecord(None), AnswerRecord("abcdef")]


def test_the_defaults_of_a_metric_of_ones_own():
    metric = Own()
    assert metric.scores(QUESTIONS, RECORDS) == [0.5, 0.0, 1.0]
    asked = []

    def judge(question, record):
        asked.append((question, record))
        return 1

    assert metric.scores(QUESTIONS, RECORDS, judge) == [1, 0, 1]
    assert asked == [(QUESTIONS[0], RECORDS[0]), (QUESTIONS[2], RECORDS[2])]
    assert all(isinstance(score, float) for score in metric.scores(QUESTIONS, RECORDS, judge))
    for questions, records in ((QUESTIONS, RECORDS[:2]), (QUESTIONS[:2], RECORDS)):
        with pytest.raises(ValueError, match="zip"):
            metric.scores(questions, records)
    assert (metric.right, metric.uses_judge) == ("a score of 1", False)
    assert metric.problem(QUESTIONS[0]) == ""
    assert metric.problem(Question(1, "q")) == "no answers"
    assert metric.summary(QUESTIONS, [0.5, 0.0, 1.0]) == {"score": 50}
    assert metric.settings() == {}
    assert [metric.matches(QUESTIONS[0], text) for text in ("abcd", "abc")] == [True, False]
    rights = [metric.is_right(QUESTIONS[0], RECORDS[0], score) for score in (1.0, 1, 0.99, 0)]
    assert rights == [True, True, False, False]
    assert [metric.same("a", "a"), metric.same("a", "A")] == [True, False]
    assert metric.exact_match_at_n(QUESTIONS[0], ["abcd"], [1.0]) is None
    assert metric.submission({1: "é", "b": ""}) == Submission(
        ".json",
        '[\n{\n"question_id": 1,\n"answer": "é"\n},\n{\n"question_id": "b",\n"answer": ""\n}\n]',
    )
    assert metric.submission({}).file == "predictions.json"


@pytest.mark.parametrize("seed", [0, 3])
def test_the_default_statistics_resample_images_by_the_seed(seed):
    rng = np.random.default_rng(2)
    first, second = (dict(enumerate(rng.choice([0.0, 50.0, 100.0], 40))) for _ in range(2))
    images = {q: q // 3 for q in first}
    splits = dict.fromkeys(first, "")
    data = list(first.values()), list(images.values())
    found = Own().interval(data[0], list(splits.values()), data[1], seed=seed)
    assert found == bootstrap(*data, seed=seed)
    found = Own().paired_test(first, second, splits, images, seed=seed)
    assert found == paired_test(first, second, images, seed=seed)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.5], "it returned 1 results from scores for 2 items"),
        ([0.5, 0.5, 1], "it returned 3 results from scores for 2 items"),
        ([0.5, 1.01], "a score from 0 to 1 is expected, got 1.01"),
        ([-0.01, 0.5], "a score from 0 to 1 is expected, got -0.01"),
        ([0.5, math.nan], "a score from 0 to 1 is expected, got nan"),
        ([0.5, "1"], "a score from 0 to 1 is expected, got '1'"),
        ([None, 0.5], "a score from 0 to 1 is expected, got None"),
    ],
)
def test_scores_that_break_the_contract(scores, said):
    with pytest.raises(ContractError) as error:
        checked_scores(Own(), scores, 2)
    assert str(error.value) == f"the metric {__name__}.Own breaks its contract: {said}"
    lost = Failure("lost")
    found = checked_scores(Own(), [0, 1, lost, 0.5], 4)
    assert found == [0.0, 1.0, lost, 0.5]
    assert isinstance(found[1], float)


def test_percent_has_four_decimals():
    assert percent([1, 1, 0]) == 66.6667
    assert percent([23 / 34]) == 67.6471


RANGE = 'a Numerical question needs answer_eval [{"range": [low, high]}]'
UNTYPED = [{"data_id": "b"}, {"data_id": "a"}, {"data_id": "c"}]
TYPES = [{"data_id": "c", "question_type": "Time"}]
CASES = [
    (
        infoseek.infoseek_score,
        ("a", [], "String"),
        "InfoSeek's score needs at least one entry in answer_eval",
    ),
    (
        infoseek.infoseek_score,
        ("a", ["5"], "numerical"),
        RANGE,
    ),
    (
        infoseek.infoseek_score,
        ("a", [{}], "Numerical"),
        RANGE,
    ),
    (
        infoseek.infoseek_score,
        ("a", [{"range": [1]}], "Numerical"),
        RANGE,
    ),
    (
        infoseek.infoseek_scores,
        ([], UNTYPED, TYPES),
        "2 references have no question type, such as a",
    ),
    (
        evqa.exact_match,
        ("x", "x", "hop"),
        "unknown question type 'hop': templated, automatic, multi_answer, 2_hop",
    ),
    (
        evqa.exact_match,
        ("x", "The a", "templated"),
        "the reference 'The a' is empty after the clean-up",
    ),
    (
        evqa.exact_match,
        ("x", "&& an&&", "multi_answer"),
        "the reference '&& an&&' is empty after the clean-up",
    ),
    (
        evqa.evqa_score,
        ("a", []),
        "E-VQA's score needs at least one reference",
    ),
    (
        ExactMatch().score,
        (Question(1, "q"), AnswerRecord("a")),
        "exact match needs at least one accepted answer",
    ),
    (
        vqa.vqa_accuracy,
        ("a", []),
        "VQA accuracy needs at least one reference answer",
    ),
    (
        vqa.vqa_accuracy,
        ("a", ["a"], "never"),
        "unknown normalization 'never': official or always",
    ),
    (
        vqa.vqa_accuracies,
        (["a"], []),
        "1 predictions for 0 lists of answers",
    ),
    (
        vqa.exact_match_at_n,
        (["a"], [], ["a"]),
        "one score per candidate is expected",
    ),
    (
        vqa.exact_match_at_n,
        (["a"], [1.0], ["a"], [1, 0]),
        "n is a number of candidates, at least 1",
    ),
    (
        ranking.recall_at_k,
        (["a"], [], [1]),
        "retrieval by ids needs at least one relevant passage",
    ),
    (ranking.checked, ([1, 0],), "K is a number of passages, at least 1"),
    (
        prrecall.answer_ranks,
        ([], [], "all"),
        "unknown rule 'all': ravqa, flmr, word, nfkc",
    ),
    (
        diagnostics.hit_success_ratio,
        ({}, {}),
        "both runs must have answered the same questions, at least one",
    ),
    (diagnostics.hit_table, ([],), "the hit table needs at least one document"),
]


@pytest.mark.parametrize(("call", "given", "said"), CASES, ids=[said for *_, said in CASES])
def test_what_cannot_be_scored_is_refused_with_the_reason(call, given, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        call(*given)


@pytest.mark.parametrize(
    ("kind", "evaluated", "said"),
    [
        ("String", ["a"], ""),
        ("Time", ["1998", {"range": [1, 2]}], "a Time question needs texts in 'answer_eval'"),
        ("Numerical", [{"range": [1, 2.5]}], ""),
        ("numerical", [{"range": [1, 2]}], ""),
        *(
            ("Numerical", bad, 'a Numerical question needs [{"range": [low, high]}]')
            for bad in (
                [],
                ["5"],
                [{"range": [1, 2]}] * 2,
                [{"range": [1, 2]}, "5"],
                [{}],
                [{"range": (1, 2)}],
                [{"range": [1, 2, 3]}],
                [{"range": [1, True]}],
                [{"range": [1, "2"]}],
                [{"range": [math.inf, 2]}],
            )
        ),
    ],
)
def test_an_infoseek_reference_fits_its_type(kind, evaluated, said):
    assert infoseek.range_problem(kind, evaluated) == said


def test_without_a_type_a_range_makes_an_infoseek_question_numerical():
    assert infoseek.question_type_of([{"range": [1, 2]}]) == "Numerical"
    assert infoseek.question_type_of(["a", {"range": [1, 2]}]) == "String"
    assert infoseek.question_type_of([]) == "String"
    texts = Question(1, "q", answer_eval=({"range": [1, 2]}, "x"))
    assert "Numerical" in infoseek.InfoSeek().problem(texts)
    mixed = Question(1, "q", answer_eval=("x", {"range": [1, 2]}))
    assert infoseek.InfoSeek().problem(mixed) == "a String question needs texts in 'answer_eval'"


def test_evqa_says_what_cannot_be_scored():
    metric = evqa.EVQAScore()

    def problem(kind, *answers):
        return metric.problem(Question(1, "q", answers=answers, question_type=kind))

    assert problem("templated") == "no answers"
    assert problem("multi_answer", "a&&b") == problem(None, "oak") == problem("2_hop", "oak") == ""
    assert problem(None, "oak", "a&&b") == (
        "a reference with '&&' needs the question type multi_answer"
    )
    assert problem("templated", "oak", "the") == "the reference 'the' is empty after the clean-up"
    assert problem("hop", "oak").startswith("unknown question type 'hop'")


def test_exact_match_is_equality_after_the_clean_up():
    metric = ExactMatch()
    question = Question(1, "q", answers=("The Oak.", "elm tree"))
    answers = ("oak", "an  OAK!", "Elm-Tree", "elm  tree", "elm", "", "oak elm tree")
    scores = [metric.score(question, AnswerRecord(answer)) for answer in answers]
    assert scores == [1, 1, 0, 1, 0, 0, 0]
    assert all(isinstance(score, float) for score in scores)
    assert metric.score(Question(1, "q", answers=("the",)), AnswerRecord(None)) == 1


FUNCTIONS = [n for n in ravqa.metrics.__all__ if n not in ("METRICS", "RETRIEVAL_METRICS")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_imported_from_the_package_on_first_use(name):
    found = getattr(ravqa.metrics, name)
    assert inspect.isfunction(found)
    assert found.__name__ == name
    assert found is getattr(inspect.getmodule(found), name)


def test_what_the_package_does_not_have_is_no_attribute():
    with pytest.raises(AttributeError, match=r"^module 'ravqa.metrics' has no attribute 'bleu'$"):
        _ = ravqa.metrics.bleu


class Scripted(Judge):
    name = fingerprint = "scripted"

    def __init__(self, judged):
        super().__init__()
        self.judged = judged

    def judge(self, questions, references, candidates):
        raise AssertionError("judge_each is asked")

    def judge_each(self, questions, references, candidates):
        yield from self.judged


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        ([(0, 1.5)], "1.5 is not a probability"),
        ([(0, -0.5)], "-0.5 is not a probability"),
        ([(2, 0.5)], "2 is not the position of a triple"),
        ([(-1, 0.5)], "-1 is not the position of a triple"),
        ([(0, 0.5)], "1 judgements of 2 triples"),
        ([(0, 0.5), (0, 0.5)], "1 judgements of 2 triples"),
        ([], "0 judgements of 2 triples"),
    ],
)
def test_judgements_that_break_the_contract(fresh_cache, judged, said):
    with pytest.raises(ContractError) as error:
        CachedJudge(Scripted(judged)).judge(["q"] * 2, ["r"] * 2, ["a", "b"])
    assert str(error.value) == f"the judge {__name__}.Scripted breaks its contract: {said}"


def test_judgements_may_come_in_any_order(fresh_cache):
    lost = Failure("lost")
    judged = [(2, 0.0), (0, 1.0), (3, lost), (1, math.nan)]
    found = CachedJudge(Scripted(judged)).judge(["q"] * 4, ["r"] * 4, list("abcd"))
    assert (found[0], math.isnan(found[1]), found[2:]) == (1.0, True, [0.0, lost])


def test_a_judge_has_the_options_of_its_class_unless_given_others():
    class Plain(Judge):
        def judge(self, questions, references, candidates):
            return [0.25, 0.75][: len(candidates)]

    assert isinstance(Plain().config, Judge.Config)
    options = Judge.Config()
    assert Plain(options).config is options
    assert list(Plain().judge_each("qq", "rr", "ab")) == [(0, 0.25), (1, 0.75)]


# --- the judge that is a language model


def llm(url="http://h/v1", **options):
    return LLMJudge(LLMJudge.Config(url=url, model="m", **options))


def test_a_language_model_is_the_same_judge_wherever_it_is_served(monkeypatch):
    """Kept judgements are found again by later versions."""
    made = llm(revision="2", system="s")
    asking = {
        "revision": "2",
        "prompt_form": "chat",
        "system": "s",
        "max_tokens_name": "max_tokens",
        "max_thinking_tokens": 0,
        "temperature": 0.0,
        "seed": None,
        "extra_body": {},
    }
    assert made.fingerprint == fingerprint("llm/4", "m", PROMPT, 8, asking)
    assert made.name == "llm (m)"
    monkeypatch.setenv("OTHER_KEY", "k" * 20)
    elsewhere = {"url": "http://other", "workers": 1, "timeout": 3, "retries": 0}
    same = llm(**elsewhere, api_key_env="OTHER_KEY", revision="2", system="s")
    assert same.fingerprint == made.fingerprint
    others = [llm(), llm(max_tokens=9), llm(prompt="{candidate}"), llm(extra_body={"top_k": 1})]
    assert len({made.fingerprint, *(judge.fingerprint for judge in others)}) == 5


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("{answer}", "'answer'"),
        ("{}", "Replacement index 0 out of range for positional args tuple"),
        ("{question", "expected '}' before end of string"),
    ],
)
def test_a_judges_prompt_with_other_fields_is_refused(prompt, why):
    with pytest.raises(UserError) as error:
        llm(prompt=prompt)
    assert str(error.value) == (
        "the judge llm: prompt: only {question}, {reference} and {candidate} can be filled in "
        f"({why})"
    )


def test_a_judge_is_asked_with_harmless_texts_in_their_places(serve):
    server = serve(lambda *_: chat("yes"))
    judge = llm(server.url, prompt="{question}|{reference}|{candidate}", workers=1)
    asked = [f"{name}<|im_end|>" for name in "qrc"]
    assert judge.judge(*([text] for text in asked)) == [1]
    assert server.bodies == [
        {
            "model": "m",
            "max_tokens": 8,
            "temperature": 0.0,
            "messages": [{"role": "user", "content": "q< |im_end|>|r< |im_end|>|c< |im_end|>"}],
        }
    ]
    for lengths in ((1, 1, 2), (1, 2, 1), (2, 1, 1)):
        with pytest.raises(ValueError, match="zip"):
            judge.judge(*(["x"] * length for length in lengths))


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (
            chat(" ", finish_reason="length"),
            "the model spent all 11 tokens on white space: raise max_tokens or max_thinking_tokens",
        ),
        (chat("</s>"), "the model ended before the first word"),
    ],
)
def test_a_reply_of_a_judge_without_a_verdict_says_why(serve, reply, said):
    server = serve(lambda *_: reply)
    [failure] = llm(server.url, max_thinking_tokens=3).judge(["q"], ["r"], ["c"])
    assert failure == Failure(f"the judge llm: {server.url}: {said}")


# --- lists that belong together


def test_lists_of_different_lengths_are_refused(fresh_cache):
    good = (["a"] * 2, [["b"]] * 2, ["q"] * 2, ["templated"] * 2)
    assert evqa.evqa_scores(*good) == [0, 0]
    calls = [
        lambda i=i: evqa.evqa_scores(*(part[: 2 - (i == n)] for n, part in enumerate(good)))
        for i in range(4)
    ]
    asked = [Question(i, "q", answers=("a",), answer_eval=("a",)) for i in range(2)]
    for metric in (evqa.EVQAScore(), infoseek.InfoSeek(), ExactMatch()):
        calls += [
            lambda m=metric: m.scores(asked, [AnswerRecord("a")]),
            lambda m=metric: m.scores(asked[:1], [AnswerRecord("a")] * 2),
        ]
    for metric in (evqa.EVQAScore(), infoseek.InfoSeek()):
        calls += [
            lambda m=metric: m.summary(asked, [1.0]),
            lambda m=metric: m.summary(asked[:1], [1.0, 1.0]),
        ]
    judge = CachedJudge(Scripted([(0, 1.0)]))
    calls += [
        lambda: judge.judge(["q"] * 2, ["r"], ["c"]),
        lambda: judge.judge(["q"], ["r"] * 2, ["c"]),
        lambda: judge.judge(["q"], ["r"], ["c"] * 2),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="zip"):
            call()


@pytest.mark.parametrize("count", [1, 3])
def test_a_judge_gives_one_verdict_per_answer(count):
    class Few(Judge):
        name = fingerprint = "few"

        def judge(self, questions, references, candidates):
            return [0.0] * count

    with pytest.raises(ValueError, match="zip"):
        evqa.evqa_scores(["a", "b"], [["c"], ["d"]], ["q"] * 2, ["automatic"] * 2, Few())
