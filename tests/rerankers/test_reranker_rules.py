"""Rules that rerankers share, filters at their limits, and how a reader is asked: word by word."""

import math

import numpy as np
import pytest
from abilities import give
from messages import said

from ravqa.answering.prompt import PromptTemplate
from ravqa.core.control_tokens import ControlTokens
from ravqa.core.errors import ContractError, UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.registry import Entry
from ravqa.core.settings import Part, Strict, fingerprint, validate
from ravqa.readers.base import Abilities, Generation, Prompt, Reader
from ravqa.rerankers import RERANKERS
from ravqa.rerankers.base import (
    PassageFilter,
    Reranker,
    RerankerConfig,
    checked_rankings,
    rescored,
    rescored_each,
)
from ravqa.rerankers.build import (
    asks_own_reader,
    build_rerankers,
    check_rerankers,
    reranker_config,
    stage_names,
)
from ravqa.rerankers.gate import Gate
from ravqa.rerankers.threshold import Threshold
from ravqa.rerankers.vlm import VLMReranker
from ravqa.rerankers.yes_no import YesNo, YesNoConfig, probability

pytestmark = pytest.mark.usefixtures("fresh_cache")

QUESTION = Question(1, "What is it?")


def hits_of(*scores):
    return [Hit(f"p{i}", score, i) for i, score in enumerate(scores, 1)]


def pairs_of(hits, text="a text"):
    return [(hit, Passage(hit.passage_id, text)) for hit in hits]


# What all share


class Given(Reranker):
    """Has no options and changes nothing."""

    fingerprint = "given"

    def __init__(self, config=None):
        self.config = config

    def rerank(self, questions, candidates):
        return [[hit for hit, _ in found] for found in candidates]


def test_a_reranker_that_defines_the_least():
    config = RerankerConfig()
    assert (config.scored_hits, config.asks_reader, config.reader_part) == (None, False, None)
    assert config.reader_problem(Abilities(False, False, False, False)) == ""
    given = Given()
    assert (given.weights, given.supports_images, tuple(given.stores)) == ("", False, ())
    assert (given.counts(), dict(given.switched_off)) == ({}, {})


A, B = Hit("a", 2.0, 1), Hit("b", 1.0, 2)


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ([None], "NoneType instead of a list of Hit"),
        ([["a"]], "list instead of a list of Hit"),
        ([{A, B}], "set instead of a list of Hit"),
        ([[A, Hit("b", "1", 2)]], "a score of passage b of type str, not a number"),
        ([[A, Hit("b", math.nan, 2)]], "a score of passage b that is not a number"),
        ([[A, A]], "a passage twice for one question"),
        ([[A, Hit("z", 1, 2), Hit("y", 1, 3)]], "passages that it was not given: 'y'"),
    ],
)
def test_a_ranking_that_breaks_the_contract(found, what):
    message = said(ContractError, checked_rankings, Given(), found, [pairs_of([A, B])])
    start = f"the reranker {__name__}.Given breaks its contract: it returned from rerank "
    assert message == start + what


def test_a_sound_ranking_is_taken():
    failure = Failure("bad")
    given = [pairs_of([A, B])] * 3
    found = [(B,), failure, [Hit("a", -math.inf, 1)]]
    assert checked_rankings(Given(), found, given) == found


class Odd(PassageFilter):
    """Keeps every second hit; the question 2 fails."""

    fingerprint = "odd"

    def keep(self, questions, rankings):
        return [
            Failure("bad") if q.question_id == 2 else [i % 2 == 0 for i in range(len(hits))]
            for q, hits in zip(questions, rankings, strict=True)
        ]


def test_a_filter_keeps_order_and_scores_and_counts_ranks_anew():
    hits = hits_of(3.0, 2.0, 1.0)
    questions = [QUESTION, Question(2, "?"), Question(3, "?")]
    found = Odd().rerank(questions, [pairs_of(hits), pairs_of(hits), []])
    assert found == [[Hit("p1", 3.0, 1), Hit("p3", 1.0, 2)], Failure("bad"), []]


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ([[True], [True]], "2 results from keep for 1 items"),
        ([[True]], "1 results from keep for 2 items"),
        ([[True] * 3], "3 results from keep for 2 items"),
        ([None], "NoneType from keep: a list is expected"),
    ],
)
def test_a_filter_says_of_each_hit_whether_it_stays(found, what, monkeypatch):
    monkeypatch.setattr(Odd, "keep", lambda *_: found)
    message = said(ContractError, Odd().rerank, [QUESTION], [pairs_of([A, B])])
    assert message == f"the reranker {__name__}.Odd breaks its contract: it returned {what}"


def test_scores_that_are_no_numbers_are_named():
    expected = (
        "reranking: the score of passage p2 is not a number: set the model's dtype to float32"
    )
    assert said(UserError, rescored, hits_of(3.0, 2.0), [1.0, math.nan]) == expected
    assert [h.score for h in rescored(hits_of(1.0, 2.0), [-math.inf, math.inf])] == [
        math.inf,
        -math.inf,
    ]
    assert rescored(hits_of(1.0, 2.0), []) == hits_of(1.0, 2.0)


def test_scores_go_to_their_questions_and_a_failure_to_its_own():
    hits = hits_of(3.0, 2.0, 1.0)
    failure = Failure("bad")
    found = rescored_each(
        [pairs_of(hits), pairs_of(hits[:1]), [], pairs_of(hits)], 2, [0.1, 0.2, 0.5, 0.7, failure]
    )
    assert found == [
        [Hit("p2", 0.2, 1, 2.0), Hit("p1", 0.1, 2, 3.0), Hit("p3", 0.1, 3, 1.0)],
        [Hit("p1", 0.5, 1, 3.0)],
        [],
        failure,
    ]


# Building


def test_names_of_stages():
    assert stage_names(["a", "b", "a", "a-2", "a"]) == ["a", "b", "a-2", "a-2-2", "a-3"]


def test_a_depth_that_is_less_than_what_is_read():
    parts = [Part(name="threshold", max_kept=1), Part(name="vlm", depth=3)]
    check_rerankers(parts, "here", 3)
    assert said(UserError, check_rerankers, parts, "here", 4) == (
        "here: reranking.1: the depth 3 of vlm is less than the 4 passages that are read: "
        "set reranking.1.depth to 4 or more"
    )


@pytest.fixture
def odd_options(monkeypatch):
    class WithOptions(Given):
        class Config(Strict):
            """Options that are not a reranker's."""

    monkeypatch.setitem(RERANKERS._entries, "odd", Entry("a:b", "for tests"))
    get = RERANKERS.get
    monkeypatch.setattr(RERANKERS, "get", lambda name: WithOptions if name == "odd" else get(name))


def test_options_of_a_reranker_have_a_base(odd_options):
    assert said(ContractError, reranker_config, Part(name="odd"), "here") == (
        "here: the reranker 'odd': its Config is not derived from "
        "ravqa.rerankers.base.RerankerConfig"
    )
    message = said(UserError, reranker_config, Part(name="vml"), "here: reranking.0")
    assert message.startswith("no reranker 'vml': did you mean vlm?")


class Table(Reader):
    """The next token and the score of an answer are given; the prompt's length chooses a row."""

    max_new_tokens = 4
    ends = frozenset({5})
    context = None
    weights = "a table"
    fingerprint = "table"
    deterministic = True
    words = ("yes", " YES", "no", "no\n", "perhaps", "")

    def __init__(self, *abilities, **changes):
        give(self, abilities or ("next_token",))
        self.asked = []
        for name, value in changes.items():
            setattr(self, name, value)

    def row(self, prompt):
        logits = np.random.default_rng(len(prompt.text)).normal(size=len(self.words))
        return (logits - np.logaddexp.reduce(logits)).astype(np.float32)

    def next_token_logprobs(self, prompts, prefixes):
        assert [tuple(prefix) for prefix in prefixes] == [()] * len(prompts)
        self.asked.append([prompt.text for prompt in prompts])
        return [Failure("bad") if "bad" in p.text else self.row(p) for p in prompts]

    def decode(self, tokens):
        return "".join(self.words[token] for token in tokens)

    def score(self, prompts, answers):
        self.asked.append([(p.text, answer) for p, answer in zip(prompts, answers, strict=True)])
        return [
            Failure("bad") if "bad" in p.text else -float(len(p.text) + len(answer))
            for p, answer in zip(prompts, answers, strict=True)
        ]

    def generate(self, prompts):
        return [Generation("x") for _ in prompts]


def test_readers_are_given_to_the_stages_that_ask():
    own, other = Table(), Table()
    asked = []

    def reader(part):
        asked.append(part)
        return own if part is None else other

    named = Part(name="first-words")
    parts = [
        Part(name="vlm"),
        Part(name="gate", rule="reader", at_least=0.5, reader=named.model_dump()),
        Part(name="gate", rule="best", at_least=0.5),
        Part(name="vlm", depth=3),
    ]
    built = build_rerankers(parts, "here", reader)
    assert list(built) == ["vlm", "gate", "gate-2", "vlm-2"]
    assert asked == [None, named, None]
    assert built["vlm"].reader is own
    assert built["gate"].reader is other
    assert built["vlm-2"].config.depth == 3
    assert asks_own_reader(parts)
    assert asks_own_reader(parts[3:])
    assert not asks_own_reader(parts[1:3])
    assert not asks_own_reader([])
    wrong = [Part(name="vlm"), Part(name="gate", wrong=1)]
    assert said(UserError, build_rerankers, wrong, "here", reader).startswith("here: reranking.1: ")
    message = said(UserError, asks_own_reader, [Part(name="gate", wrong=1)])
    assert message.startswith("reranking: ")


# Filters by score


def kept(scores, **options):
    config = validate(Threshold.Config, options, "threshold")
    tested = Threshold(config)
    assert tested.fingerprint == fingerprint("threshold/1", config.model_dump())
    [found] = tested.rerank([QUESTION], [pairs_of(hits_of(*scores))])
    return [int(hit.passage_id[1:]) for hit in found]


@pytest.mark.parametrize(
    ("options", "scores", "expected"),
    [
        ({"rule": "absolute", "value": 1.0}, [1.0, 0.999, 2.0], [1, 3]),
        ({"rule": "difference", "value": 1.0}, [2.0, 3.0, 1.999], [1, 2]),
        ({"rule": "ratio", "value": 0.5}, [4.0, 2.0, 1.999], [1, 2]),
        ({"rule": "ratio", "value": 1.0}, [4.0, 4.0, 0.0], [1, 2]),
        ({"rule": "ratio", "value": 1.0}, [0.0, 0.0], [1, 2]),
        ({"rule": "mass", "value": 0.5}, [1.0, 1.0], [1]),
        ({"rule": "mass", "value": 0.51}, [1.0, 1.0], [1, 2]),
        ({"rule": "mass", "value": 0.5}, [1.0, 1.0, 1.0, 1.0], [1, 2]),
        ({"rule": "mass", "value": 1.0}, [1.0, 0.0, -1.0], [1, 2, 3]),
        ({"rule": "mass", "value": 0.9, "temperature": 0.1}, [2.0, 1.0], [1]),
        ({"rule": "mass", "value": 0.9, "temperature": 10.0}, [2.0, 1.0], [1, 2]),
        ({"rule": "absolute", "value": 9.0, "min_kept": 2}, [1.0, 1.0, 1.0], [1, 2]),
        ({"rule": "absolute", "value": 2.0, "min_kept": 1}, [1.0, 1.0, 2.0], [1, 3]),
        ({"rule": "absolute", "value": 1.0, "max_kept": 2}, [0.0, 1.0, 1.0, 1.0], [2, 3]),
        ({"max_kept": 1, "min_kept": 1}, [1.0, 2.0], [1]),
        ({"max_kept": 3}, [], []),
        ({"rule": "mass", "value": 0.5}, [], []),
    ],
)
def test_limits_of_filters(options, scores, expected):
    assert kept(scores, **options) == expected


def test_negative_scores_have_no_ratio():
    options = {"rule": "ratio", "value": 0.5}
    assert said(UserError, kept, [2.0, -0.25], **options) == (
        "reranking: threshold: the score -0.25 is negative, and the rule ratio compares shares: "
        "use the rule difference"
    )


# The gate


def gate(asked=None, **options):
    return Gate(validate(Gate.Config, options, "gate"), asked)


@pytest.mark.parametrize(
    ("options", "scores", "is_open"),
    [
        ({"rule": "best", "at_least": 1.0}, [1.0], True),
        ({"rule": "best", "at_least": 1.0}, [0.999], False),
        ({"rule": "margin", "at_least": 1.0}, [1.0, 2.0], True),
        ({"rule": "margin", "at_least": 1.0}, [1.0, 1.999], False),
        ({"rule": "margin", "at_least": 1.0, "against": 3}, [1.0, 3.0, 2.5], True),
        ({"rule": "margin", "at_least": 2.5, "against": 3}, [1.0, 3.0, 2.5], False),
        ({"rule": "margin", "at_least": 9.0, "against": 3}, [1.0, 3.0], True),
        ({"rule": "margin", "at_least": 9.0, "against": 3}, [1.0, 3.0, 3.0], False),
    ],
)
def test_limits_of_gates(options, scores, is_open):
    tested = gate(**options)
    hits = hits_of(*scores)
    [found] = tested.rerank([QUESTION], [pairs_of(hits)])
    assert found == (hits if is_open else [])
    settings = tested.config.model_dump(include={"rule", "at_least", "against"})
    assert tested.fingerprint == fingerprint("gate/1", [settings])
    assert (tested.counts(), tested.supports_images) == ({"scored": 0}, False)


def test_a_gate_with_a_reader_says_what_it_asks():
    reader = Table("next_token", "images", switched_off={"x": "y"})
    tested = gate(reader, rule="reader", at_least=0.5)
    assert (tested.supports_images, tested.weights) == (True, "a table")
    assert tested.switched_off == {"x": "y"}
    assert tested.stores == tested._ask.stores == tested._ask._kept.stores != ()
    source = PromptTemplate.load("gate-needs-knowledge").source
    settings = {"rule": "reader", "at_least": 0.5, "against": 2}
    asked = {"asked": tested._ask.fingerprint, "prompt": source}
    assert tested.fingerprint == fingerprint("gate/1", [settings, asked])
    expected = "the gate's rule reader needs a reader"
    assert said(UserError, gate, rule="reader", at_least=0.5) == expected
    questions = [Question(1, "bad"), Question(2, "good"), Question(3, "none")]
    found = tested.rerank(questions, [pairs_of(hits_of(1.0)), pairs_of(hits_of(1.0)), []])
    assert found[0] == Failure("bad")
    assert found[2] == []
    template = PromptTemplate.load("gate-needs-knowledge")
    row = np.exp(reader.row(template.prompt(questions[1], [], reader=reader)[0]).astype(float))
    assert bool(found[1]) == (row[:2].sum() / row[:3].sum() >= 0.5)
    message = said(UserError, gate, Table("log_probs"), rule="reader", at_least=0.5)
    assert message == (
        "the gate asks a reader for probabilities, which this reader does not give: choose another "
        "reader for it"
    )


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({"rule": "best", "against": 3, "cache": False, "prompt": "x"}, "against, cache, prompt"),
        ({"rule": "margin", "positive": ["a"], "way": "score"}, "positive, way"),
        ({"rule": "margin", "reader": {"name": "first-words"}}, "reader"),
        ({"rule": "reader", "against": 2}, "against"),
    ],
)
def test_options_of_a_gate_that_do_nothing_are_named(options, idle):
    message = said(UserError, gate, at_least=0.5, **options)
    assert message == f"gate: {idle}: not used by the rule {options['rule']}"
    assert gate(rule="margin", at_least=-3.0, against=3).config.against == 3
    for limit in (0.0, 1.0):
        assert gate(Table(), rule="reader", at_least=limit).config.at_least == limit
    for limit in (-0.1, 1.1):
        message = said(UserError, gate, Table(), rule="reader", at_least=limit)
        assert message == f"gate: at_least {limit}: a probability, 0 to 1, is expected"


# Yes or no


def test_the_fingerprint_of_the_question_asked_is_made_of_reader_way_and_words():
    config = YesNoConfig(positive=("y", "b"), negative=("n", "a"))
    tested = YesNo(config, Table("next_token", "score"), "the test")
    assert tested.way == "next-token"
    expected = fingerprint("yes-no/1", "table", "next-token", ["b", "y"], ["a", "n"])
    assert tested.fingerprint == expected
    assert YesNo(YesNoConfig(way="score"), Table("next_token", "score"), "x").way == "score"


def test_prompts_are_asked_a_batch_at_a_time_and_failures_stay_their_own():
    reader = Table()
    tested = YesNo(YesNoConfig(batch_size=2), reader, "the test")
    prompts = [Prompt(text) for text in ("a", "bad", "ccc", "dddd", "eeeee")]
    found = tested.log_odds(prompts)
    assert reader.asked == [["a", "bad"], ["ccc", "dddd"], ["eeeee"]]
    assert tested.asked == 4  # without the one that failed
    for prompt, odds in zip(prompts, found, strict=True):
        if prompt.text == "bad":
            assert odds == probability(odds) == Failure("bad")
        else:
            row = np.exp(reader.row(prompt).astype(float))
            assert odds == pytest.approx(math.log((row[0] + row[1]) / row[2]), abs=1e-6)


def test_words_are_scored_side_by_side():
    reader = Table("score")
    config = YesNoConfig(positive=("yes", "y"), negative=("no", "never"), batch_size=2)
    found = YesNo(config, reader, "the test").log_odds([Prompt("a"), Prompt("bad"), Prompt("cc")])
    words = ("yes", "y", "no", "never")
    assert reader.asked == [[(p, w) for p in ("a", "bad") for w in words]] + [
        [("cc", w) for w in words]
    ]
    expected = math.log((math.exp(-3) + math.exp(-1)) / (math.exp(-2) + math.exp(-5)))
    assert found == [pytest.approx(expected), Failure("bad"), pytest.approx(expected)]


@pytest.mark.parametrize(
    ("yes", "no", "odds"),
    [
        (-math.inf, -math.inf, 0.0),
        (-1.0, -math.inf, 1000.0),
        (-math.inf, -1.0, -1000.0),
        (-1.0, -3.5, 2.5),
        (-2000.0, -1.0, -1000.0),
    ],
)
def test_log_odds_are_bounded(yes, no, odds):
    reader = Table("score")
    reader.score = lambda prompts, answers: [yes if a == "yes" else no for a in answers]
    config = YesNoConfig(cache=False)
    assert YesNo(config, reader, "the test").log_odds([Prompt("a")]) == [odds]


def test_a_word_without_a_token_is_named():
    config = YesNoConfig(positive=("perhaps",), negative=("never", "nay"))
    assert said(UserError, YesNo(config, Table(), "the test").log_odds, [Prompt("a")]) == (
        "the test: the reader has no token for 'never' or 'nay': set other words, or way to score"
    )
    message = said(UserError, YesNo, YesNoConfig(way="score"), Table(), "the test")
    assert message == (
        "the test asks in the way score, which this reader does not know: next-token works"
    )


# The reader as a reranker


def vlm(reader, **options):
    return VLMReranker(validate(VLMReranker.Config, options, "vlm"), reader)


def test_the_reranker_that_asks_says_what_it_asks():
    reader = Table("next_token", "images", switched_off={"x": "y"})
    tested = vlm(reader, depth=3, max_words=9)
    source = PromptTemplate.load("rerank-yes-no").source
    asked = tested._ask.fingerprint
    assert tested.fingerprint == fingerprint("vlm/1", asked, source, 3, "probability", 9)
    assert (tested.supports_images, tested.weights) == (True, "a table")
    assert (tested.switched_off, tested.stores) == ({"x": "y"}, tested._ask.stores)
    assert [store.name for store in tested.stores] == ["reranking"]
    with pytest.raises(ValueError, match="zip"):
        tested.rerank([QUESTION] * 2, [pairs_of([A, B])])
    assert reader.asked == []
    assert tested.counts() == {"scored": 0, "truncated": 0, "neutralised": 0}
    config = tested.config
    assert (config.scored_hits, config.asks_reader, config.reader_part) == (3, True, None)
    named = validate(VLMReranker.Config, {"reader": {"name": "first-words"}}, "vlm")
    assert named.reader_part == Part(name="first-words")


def test_of_many_answers_few_are_lost_if_the_process_ends():
    class Stopped(Table):
        def next_token_logprobs(self, prompts, prefixes):
            if sum(map(len, self.asked)) >= 128:
                raise KeyboardInterrupt
            return super().next_token_logprobs(prompts, prefixes)

    hits = hits_of(*range(150, 0, -1))
    pairs = [(hit, Passage(hit.passage_id, f"text {hit.passage_id}")) for hit in hits]
    with pytest.raises(KeyboardInterrupt):
        vlm(Stopped(), depth=150).rerank([QUESTION], [pairs])
    again = Table()
    vlm(again, depth=150).rerank([QUESTION], [pairs])
    assert sum(map(len, again.asked)) == 150 - 128


def test_long_passages_are_cut_to_so_many_words():
    reader = Table()
    reader.control_tokens = ControlTokens(["<x>"])
    tested = vlm(reader, max_words=3)
    texts = ["one two three", "one two\n other four", "one <x>"]
    pairs = [
        (hit, Passage(hit.passage_id, t)) for hit, t in zip(hits_of(3, 2, 1), texts, strict=True)
    ]
    tested.rerank([QUESTION], [pairs])
    [asked] = reader.asked
    for part, there in (
        ("one two three", [True, False, False]),
        ("one two other", [False, True, False]),
        ("four", [False] * 3),
    ):
        assert [part in text for text in asked] == there
    assert tested.counts() == {"scored": 3, "truncated": 1, "neutralised": 1}
    whole = vlm(Table(), max_words=None)
    whole.rerank([QUESTION], [pairs])
    assert whole.truncated == 0


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("bad", ""),
        ("the prompt is longer than 5 tokens", " (its setting max_words cuts passages)"),
        ("too long", " (its setting max_words cuts passages)"),
        ("out of memory", " (its setting max_words cuts passages)"),
    ],
)
def test_a_failure_names_the_reranker_and_the_way_out(reason, hint):
    reader = Table()
    reader.next_token_logprobs = lambda prompts, prefixes: [Failure(reason) for _ in prompts]
    [found] = vlm(reader).rerank([QUESTION], [pairs_of(hits_of(1.0))])
    assert found == Failure(f"the reranker vlm: {reason}{hint}")
