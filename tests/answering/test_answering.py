"""Decision rules, by hand and by brute force, prompts that fit, and the cache."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from abilities import give
from hypothesis import given
from hypothesis import strategies as st

from ravqa.answering import RULES
from ravqa.answering.answerer import Answerer
from ravqa.answering.priors import log_priors, log_softmax
from ravqa.answering.rules import answering_config
from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Passage, Question
from ravqa.readers.base import Generation, Reader

PLAIN = Question(8, "What does it eat?")


# --- log_softmax


def test_log_softmax_by_hand():
    assert log_softmax([0.0, math.log(3)]) == pytest.approx([math.log(0.25), math.log(0.75)])
    assert log_softmax([0.0, 2 * math.log(3)], 2.0) == pytest.approx(
        [math.log(0.25), math.log(0.75)]
    )
    assert log_softmax([5.0]) == [0.0]
    assert log_softmax([1.0] * 4) == pytest.approx([-math.log(4)] * 4)
    # a passage without vectors scores minus infinity: it gets no probability
    assert log_softmax([1.0, -math.inf]) == [0.0, -math.inf]
    assert log_softmax([-math.inf] * 2) == pytest.approx([-math.log(2)] * 2)


def test_priors_by_hand():
    assert log_priors([2.0, 1.0], "uniform", 1.0) == pytest.approx([-math.log(2)] * 2)
    # The empty passage has the mean of the others' scores: log softmax(0, 2, 1).
    norm = math.log(1 + math.e**2 + math.e)
    assert log_priors([0.0, 2.0, None], "scores", 1.0) == pytest.approx([-norm, 2 - norm, 1 - norm])
    assert log_priors([None], "scores", 1.0) == [0.0]


@given(
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30),
    st.floats(0.01, 100),
    st.floats(-1e4, 1e4),
)
def test_log_softmax_is_a_distribution_whatever_the_size_of_scores(scores, temperature, shift):
    values = log_softmax(scores, temperature)
    assert math.fsum(math.exp(v) for v in values) == pytest.approx(1)
    assert all(v <= 1e-12 for v in values)
    shifted = log_softmax([s + shift for s in scores], temperature)
    assert shifted == pytest.approx(values, rel=1e-6, abs=1e-6 / temperature)
    for i in range(1, len(scores)):
        difference = (scores[i] - scores[0]) / temperature
        assert values[i] - values[0] == pytest.approx(difference, rel=1e-6, abs=1e-6)


# --- the decision


class Scripted(Reader):
    """A reader that answers by rule and keeps what it was given; a token is a character."""

    weights = "a script"
    deterministic = True
    max_new_tokens = 4
    ends = frozenset({0})

    def __init__(
        self,
        rule=None,
        *,
        abilities=("log_probs",),
        fingerprint="script/1",
        context=None,
        scores=(),
    ):
        self.rule = rule or (lambda text: Generation(f" answer {len(text)}.", -1.0, 2))
        give(self, abilities)
        self.fingerprint = fingerprint
        self.context = context
        self.scores = dict(scores)
        self.seen = []
        self.calls = 0

    def generate(self, prompts):
        self.calls += 1
        self.seen += prompts
        return [self.rule(p.text) for p in prompts]

    def score(self, prompts, answers):
        return [self.scores[p.text[-2], a] for p, a in zip(prompts, answers, strict=True)]

    def count_tokens(self, prompts):
        return [len(p.text) for p in prompts]


@pytest.fixture
def prompt_file(tmp_path, fresh_cache):
    path = tmp_path / "bare.jinja"
    path.write_text(
        "{{ question }}{% for p in passages %}[{{ p.text }}]{% endfor %}", encoding="utf-8"
    )
    return str(path)


def found(*pairs):
    """Retrieved passages: (text and id, score), best first."""
    return [
        (Hit(text, score, rank), Passage(text, text)) for rank, (text, score) in enumerate(pairs, 1)
    ]


def by_passage(options=None, **generations):
    """A reader whose answer depends on the one passage in the prompt, or on there being none."""
    options = options or {}

    def rule(text):
        [name] = [n for n in generations if f"[{n}]" in text] or ["none"]
        return Generation(*generations[name])

    return Scripted(rule, **options)


def answerer(reader, prompt, **options):
    options.setdefault("decision", "joint_max")
    return Answerer(answering_config({"prompt": prompt, **options}), reader)


def test_joint_max_by_hand(prompt_file):
    reader = by_passage(a=(" Apple.", -3.0, 3), b=(" Bread.", -0.2, 2), c=(" Cake", -9.0, 1))
    tested = answerer(reader, prompt_file, passages=3)
    [answer] = tested.answer([PLAIN], [found(("a", 2.0), ("b", 1.0), ("c", 0.0))])
    # log softmax(2, 1, 0) = 2, 1, 0 - log(e^2 + e + 1); plus -3/3, -.2/2, -9/1
    norm = math.log(math.e**2 + math.e + 1)
    assert [d.score for d in answer.drafts] == pytest.approx(
        [2 - norm - 1.0, 1 - norm - 0.1, 0 - norm - 9.0]
    )
    assert answer.text == "apple"
    assert answer.decision == "joint_max"
    assert [d.text for d in answer.drafts] == ["apple", "bread", "cake"]
    assert [d.raw for d in answer.drafts] == [" Apple.", " Bread.", " Cake"]
    assert [d.passage_ids for d in answer.drafts] == [("a",), ("b",), ("c",)]
    assert [(d.log_prob, d.tokens) for d in answer.drafts] == [(-3.0, 3), (-0.2, 2), (-9.0, 1)]


def test_a_high_temperature_makes_the_passages_equal(prompt_file):
    reader = by_passage(a=("apple", -3.0, 3), b=("bread", -0.2, 2))
    tested = answerer(reader, prompt_file, passages=2, temperature=10)
    [answer] = tested.answer([PLAIN], [found(("a", 2.0), ("b", 1.0))])
    # log softmax(.2, .1) = -.6444, -.7444: now the better generation wins
    assert [d.score for d in answer.drafts] == pytest.approx([-1.6444, -0.8444], abs=1e-4)
    assert answer.text == "bread"


def test_a_long_answer_is_not_punished_for_its_length(prompt_file):
    reader = by_passage(long=("a long answer", -2.0, 10), short=("short", -1.0, 1))
    tested = answerer(reader, prompt_file, passages=2)
    [answer] = tested.answer([PLAIN], [found(("short", 1.0), ("long", 1.0))])
    assert answer.text == "a long answer"


def test_equal_answers_are_not_added_up(prompt_file):
    reader = by_passage(a=("one", -0.5, 1), b=("two", -0.6, 1), c=("two", -0.6, 1))
    tested = answerer(reader, prompt_file, passages=3)
    [answer] = tested.answer([PLAIN], [found(("b", 0.0), ("c", 0.0), ("a", 0.0))])
    assert answer.text == "one"


def test_of_equal_scores_the_better_passage_wins(prompt_file):
    reader = by_passage(a=("one", -0.5, 1), b=("two", -0.5, 1))
    tested = answerer(reader, prompt_file, passages=2)
    [answer] = tested.answer([PLAIN], [found(("b", 0.3), ("a", 0.3))])
    assert answer.text == "two"


def test_questions_with_different_numbers_of_passages_are_kept_apart(prompt_file):
    reader = Scripted(lambda text: Generation(text, -1.0, 1))
    tested = answerer(reader, prompt_file, passages=2)
    questions = [Question(i, f"q{i}") for i in range(4)]
    retrieved = [
        found(("a", 1.0), ("b", 0.5), ("c", 0.4)),
        [],
        found(("d", 1.0)),
        found(("e", 0.0), ("f", 2.0)),
    ]
    answers = tested.answer(questions, retrieved)
    assert [[d.raw for d in a.drafts] for a in answers] == [
        ["q0[a]", "q0[b]"],
        ["q1"],
        ["q2[d]"],
        ["q3[e]", "q3[f]"],
    ]
    assert [a.text for a in answers] == ["q0[a]", "q1", "q2[d]", "q3[f]"]
    assert reader.calls == 1  # one batch


def test_top1_reads_the_best_passage_only_and_concat_all(prompt_file):
    retrieved = found(("a", 3.0), ("b", 2.0), ("c", 1.0))
    reader = Scripted(Generation, abilities=())
    [top] = answerer(reader, prompt_file, decision="top1").answer([PLAIN], [retrieved])
    assert [(d.raw, d.passage_ids) for d in top.drafts] == [("What does it eat?[a]", ("a",))]
    [both] = answerer(reader, prompt_file, decision="concat", passages=2).answer(
        [PLAIN], [retrieved]
    )
    assert [(d.raw, d.passage_ids) for d in both.drafts] == [
        ("What does it eat?[a][b]", ("a", "b"))
    ]
    assert (top.decision, both.decision) == ("top1", "concat")


def test_top1_with_more_passages_is_refused(prompt_file):
    with pytest.raises(UserError, match="top1 reads only one: set the decision"):
        answerer(Scripted(), prompt_file, decision="top1", passages=2)


GENERATING = [name for name, _ in RULES if not RULES.get(name).needs_choices]


@pytest.mark.parametrize("decision", GENERATING)
def test_without_passages_every_rule_is_one_prompt(prompt_file, decision):
    k = 1 if decision == "top1" else 3
    reader = Scripted(abilities=("log_probs", "next_token"))
    tested = answerer(reader, prompt_file, decision=decision, passages=k, empty_passage=True)
    [answer] = tested.answer([PLAIN], [[]])
    assert [d.passage_ids for d in answer.drafts] == [()]
    assert [p.text for p in reader.seen] == ["What does it eat?"]
    assert (answer.text, answer.raw, answer.log_prob) == ("answer 17", " answer 17.", -1.0)
    assert answer.decision == decision


def test_none_reads_no_passage_whatever_was_retrieved(prompt_file):
    reader = Scripted(Generation, abilities=())
    tested = answerer(reader, prompt_file, decision="none", passages=2)
    [answer] = tested.answer([PLAIN], [found(("a", 1.0), ("b", 0.5))])
    assert answer.drafts[0].raw == "What does it eat?"
    assert answer.passage_ids == ()
    assert answer.cut == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decision": "joint_max"}, "joint_max compares log-probabilities, which this reader"),
        ({"decision": "marginal"}, "marginal adds up the probabilities of answers, which this"),
        ({"decision": "marginal", "marginal": "thorough"}, "scores answers under every passage"),
        ({"decision": "mixture"}, "mixture decodes from next-token distributions, which this"),
    ],
)
def test_what_a_rule_needs_of_the_reader_is_checked(prompt_file, options, message):
    mute = Scripted(lambda text: Generation("x"), abilities=())
    with pytest.raises(UserError, match=message) as caught:
        answerer(mute, prompt_file, passages=2, **options)
    assert str(caught.value).endswith("choose concat or vote")
    if options["decision"] != "mixture":  # nothing to compare
        [answer] = answerer(mute, prompt_file, **options).answer([PLAIN], [found(("a", 1.0))])
        assert answer.text == "x"
    [answer] = answerer(mute, prompt_file, decision="vote", passages=2).answer(
        [PLAIN], [found(("a", 1.0), ("b", 1.0))]
    )
    assert answer.text == "x"


def test_a_missing_log_probability_is_no_probability_of_one(prompt_file):
    reader = by_passage(a=("one", -0.5, 1), b=("two", None, 0))
    tested = answerer(reader, prompt_file, passages=2)
    [failure] = tested.answer([PLAIN], [found(("a", 0.0), ("b", 0.0))])
    assert "without its log-probability" in failure.reason


def test_only_a_reader_that_can_see_gets_the_image(prompt_file):
    question = Question(1, "What is it?", image=b"image one")
    blind, seeing = Scripted(), Scripted(abilities=("log_probs", "images"), fingerprint="seeing")
    answerer(blind, prompt_file).answer([question], [[]])
    answerer(seeing, prompt_file).answer([question], [[]])
    assert blind.seen[0].image is None
    assert seeing.seen[0].image == b"image one"


def test_a_uniform_prior_leaves_the_retrieval_scores_out(prompt_file):
    reader = by_passage(a=("apple", -3.0, 3), b=("bread", -0.2, 2))
    tested = answerer(reader, prompt_file, passages=2, prior="uniform")
    [answer] = tested.answer([PLAIN], [found(("a", 50.0), ("b", 1.0))])
    assert [d.score for d in answer.drafts] == pytest.approx([-math.log(2) - 1, -math.log(2) - 0.1])
    assert [d.prior for d in answer.drafts] == pytest.approx([0.5, 0.5])
    assert answer.text == "bread"


def test_priors_after_reranking_are_the_rerankers_or_the_retrievers(prompt_file):
    pairs = found(("a", 0.9), ("b", 0.1))
    reranked = [
        (replace(hit, retrieval_score=score), passage)
        for (hit, passage), score in zip(pairs, (1.0, 3.0), strict=True)
    ]
    for prior, odds in (("scores", 0.8), ("retrieval", -2.0)):
        reader = by_passage(a=("apple", -1.0, 1), b=("bread", -1.0, 1))
        tested = answerer(reader, prompt_file, passages=2, prior=prior)
        [answer] = tested.answer([PLAIN], [reranked])
        share = 1 / (1 + math.exp(-odds))
        assert [d.prior for d in answer.drafts] == pytest.approx([share, 1 - share])
        assert answer.text == ("apple" if odds > 0 else "bread")


def test_the_empty_passage_competes(prompt_file):
    reader = by_passage(a=("apple", -3.0, 1), none=("nothing", -0.1, 1))
    tested = answerer(reader, prompt_file, empty_passage=True)
    [answer] = tested.answer([PLAIN], [found(("a", 7.0))])
    assert [d.passage_ids for d in answer.drafts] == [("a",), ()]
    assert [d.prior for d in answer.drafts] == pytest.approx([0.5, 0.5])
    assert answer.text == "nothing"
    assert answer.passage_ids == ("a",)  # what stood in a prompt


# --- marginal


def test_fast_marginal_by_hand(prompt_file):
    reader = by_passage(
        a=(" Apple.", math.log(0.6), 2),
        b=("The bread", math.log(0.4), 2),
        c=("bread", math.log(0.5), 2),
    )
    tested = answerer(reader, prompt_file, decision="marginal", passages=3, prior="uniform")
    [answer] = tested.answer([PLAIN], [found(("a", 3.0), ("b", 2.0), ("c", 1.0))])
    # P(apple) = .6/3 = .2; P(bread) = .4/3 + .5/3 = .3, of which passage c holds 5/9
    assert [math.exp(d.score) for d in answer.drafts] == pytest.approx([0.2, 0.3, 0.3])
    assert [d.posterior for d in answer.drafts] == pytest.approx([0, 4 / 9, 5 / 9])
    assert math.exp(answer.log_prob) == pytest.approx(0.3)
    assert (answer.text, answer.raw) == ("bread", "bread")  # the likelier generation of the two


def test_joint_max_and_marginal_differ_where_answers_agree(prompt_file):
    reader = by_passage(a=("one", -0.5, 1), b=("two", -0.6, 1), c=("Two!", -0.6, 1))
    retrieved = [found(("b", 0.0), ("c", 0.0), ("a", 0.0))]
    texts = {
        decision: answerer(reader, prompt_file, decision=decision, passages=3)
        .answer([PLAIN], retrieved)[0]
        .text
        for decision in ("joint_max", "marginal", "vote")
    }
    assert texts == {"joint_max": "one", "marginal": "two", "vote": "two"}


@pytest.mark.parametrize(
    ("merge", "expected"), [("vqa", "the ice-cream"), ("lower", "cake"), ("exact", "cake")]
)
def test_which_answers_are_the_same_is_a_setting(prompt_file, merge, expected):
    reader = by_passage(a=("cake", -0.9, 1), b=("the ice-cream", -1.0, 1), c=("ice cream", -1.2, 1))
    tested = answerer(reader, prompt_file, decision="marginal", passages=3, merge=merge)
    [answer] = tested.answer([PLAIN], [found(("a", 0.0), ("b", 0.0), ("c", 0.0))])
    assert answer.text == expected


def test_thorough_marginal_by_hand(prompt_file):
    texts = {"a": "apple", "b": "bread", "c": "Bread."}
    chances = {  # of each text (rows) under each passage (columns)
        "apple": {"a": 0.5, "b": 0.1, "c": 0.1},
        "bread": {"a": 0.2, "b": 0.3, "c": 0.1},
        "Bread.": {"a": 0.1, "b": 0.1, "c": 0.4},
    }
    scores = {(k, t): math.log(p) for t, row in chances.items() for k, p in row.items()}
    reader = by_passage(
        {"abilities": ("score",), "scores": scores}, **{k: (t,) for k, t in texts.items()}
    )
    tested = answerer(
        reader, prompt_file, decision="marginal", marginal="thorough", passages=3, temperature=1
    )
    [answer] = tested.answer(
        [PLAIN], [found(("a", math.log(2)), ("b", 0.0), ("c", 0.0))]
    )  # priors 1/2, 1/4, 1/4
    apple = 0.5 * 0.5 + 0.25 * 0.1 + 0.25 * 0.1
    bread = (0.5 * 0.2 + 0.25 * 0.3 + 0.25 * 0.1) + (0.5 * 0.1 + 0.25 * 0.1 + 0.25 * 0.4)
    assert [math.exp(d.score) for d in answer.drafts] == pytest.approx([apple, bread, bread])
    assert [d.posterior for d in answer.drafts] == pytest.approx(
        [0.5 * 0.3 / bread, 0.25 * 0.4 / bread, 0.25 * 0.5 / bread]
    )
    assert answer.text == "bread"
    assert answer.raw == "bread"  # .2 against .175
    assert math.exp(answer.log_prob) == pytest.approx(bread)
    assert tested.cached.scored == 9


# --- vote


def test_votes_are_counted_and_the_better_passage_breaks_a_tie(prompt_file):
    def vote(*texts, **options):
        names = "abcdef"[: len(texts)]
        reader = by_passage(
            {"abilities": (), "fingerprint": str(texts)},
            **{n: (t,) for n, t in zip(names, texts, strict=True)},
        )
        tested = answerer(reader, prompt_file, decision="vote", passages=6, **options)
        return tested.answer([PLAIN], [found(*((n, 0.0) for n in names))])[0]

    answer = vote("one", "Two.", "a two", "three")
    assert (answer.text, answer.raw) == ("two", "Two.")
    assert [d.score for d in answer.drafts] == [1, 2, 2, 1]
    assert vote("one", "two", "two", "one").text == "one"
    assert vote("one", "two", "a two", merge="exact").text == "one"
    assert vote("", "", "three").text == "three"  # silence has no vote
    assert vote("\u200b", "\u200b", "three").text == "three"
    for silence in (" ", "\u200b", "\u2060\ufeff", "\u3164", "</s>", "<s> </s>"):
        assert vote("", silence) == Failure("the model ended its answer before the first word")
    thought = "<think>hm</think>\u200b"
    assert vote(thought, thought).reason.startswith("the model's output is reasoning")
    assert vote("", " ") == Failure("the model ended its answer before the first word")


# --- prompts that fit


def test_concat_leaves_out_whole_passages_the_last_first(prompt_file):
    # "What does it eat?" has 17 tokens, a passage of 3 letters 5; 4 are to be generated.
    retrieved = found(("aaa", 4.0), ("bbb", 3.0), ("ccc", 2.0), ("ddd", 1.0))
    for context, read in (
        (41, "aaa bbb ccc ddd"),
        (40, "aaa bbb ccc"),
        (31, "aaa bbb"),
        (26, "aaa"),
    ):
        reader = Scripted(
            Generation, abilities=("count",), context=context, fingerprint=str(context)
        )
        tested = answerer(reader, prompt_file, decision="concat", passages=4)
        [answer] = tested.answer([PLAIN], [retrieved])
        assert answer.passage_ids == tuple(read.split()), context
        assert answer.raw == "What does it eat?" + "".join(f"[{p}]" for p in read.split())
        assert answer.cut == 4 - len(read.split())
    # Not even one: the question alone is asked, whether or not it fits.
    for context in (25, 10):
        reader = Scripted(Generation, abilities=("count",), context=context)
        [answer] = answerer(reader, prompt_file, decision="concat", passages=4, cache=False).answer(
            [PLAIN], [retrieved]
        )
        assert (answer.raw, answer.cut) == ("What does it eat?", 4)


def test_a_passage_that_does_not_fit_takes_no_part(prompt_file):
    reader = Scripted(
        lambda text: Generation(text, -1.0, 1), abilities=("count", "log_probs"), context=26
    )
    tested = answerer(reader, prompt_file, passages=3)
    questions = [PLAIN, Question(9, "And it?")]
    retrieved = found(("much too long", 9.0), ("bbb", 2.0), ("ccc", 1.0))
    answers = tested.answer(questions, [retrieved, retrieved])
    assert [d.passage_ids for d in answers[0].drafts] == [("bbb",), ("ccc",)]
    assert sum(d.prior for d in answers[0].drafts) == pytest.approx(1)
    assert answers[0].cut == 1
    assert [d.passage_ids for d in answers[1].drafts] == [("much too long",), ("bbb",), ("ccc",)]
    assert answers[1].cut == 0


@pytest.mark.parametrize(
    ("abilities", "context"), [(("count",), None), ((), 20)], ids=["no context", "cannot count"]
)
def test_a_reader_that_cannot_say_is_given_everything(prompt_file, abilities, context):
    reader = Scripted(Generation, abilities=abilities, context=context)
    tested = answerer(reader, prompt_file, decision="concat", passages=2)
    [answer] = tested.answer([PLAIN], [found(("aaa", 2.0), ("bbb", 1.0))])
    assert (answer.passage_ids, answer.cut) == (("aaa", "bbb"), 0)


# --- the cache of generations


def generated_texts(reader):
    return Counter(p.text for p in reader.seen)


def test_the_same_prompt_is_generated_once_across_answerers(prompt_file):
    retrieved = found(("a", 1.0), ("b", 0.5))
    first = Scripted(lambda text: Generation(f" Answer to {text} ", -1.25, 3))
    one = answerer(first, prompt_file, passages=2)
    before = one.answer([PLAIN, PLAIN], [retrieved, retrieved])
    assert set(generated_texts(first).values()) == {1}
    assert one.cached.generated == 2
    assert one.answer([PLAIN], [retrieved]) == before[:1]

    silent = Scripted(lambda text: pytest.fail("generated again"))
    other = answerer(silent, prompt_file, passages=2)
    assert other.answer([PLAIN], [retrieved]) == before[:1]  # raw text, log_prob, tokens and all
    assert other.cached.generated == 0
    # the same prompt from another question, with another rule: still the same generation
    top = answerer(silent, prompt_file, decision="top1", extract={"lower": False})
    [answer] = top.answer([Question(99, PLAIN.question)], [retrieved])
    assert answer.drafts[0].raw == " Answer to What does it eat?[a] "
    assert answer.text == "Answer to What does it eat?[a]"


def test_only_new_prompts_are_generated(prompt_file):
    reader = Scripted(lambda text: Generation(text.upper(), -1.0, 1))
    tested = answerer(reader, prompt_file)
    tested.answer([Question(1, "one"), Question(2, "two")], [[], []])
    answers = tested.answer(
        [Question(i, t) for i, t in enumerate(("two", "three", "one"))], [[]] * 3
    )
    assert [a.drafts[0].raw for a in answers] == ["TWO", "THREE", "ONE"]
    assert generated_texts(reader) == {"one": 1, "two": 1, "three": 1}
    assert tested.cached.generated == 3


def test_another_reader_fingerprint_is_another_entry(prompt_file):
    for name in ("x", "y", "x"):
        reader = Scripted(lambda text, name=name: Generation(name), fingerprint=f"reader/{name}")
        [answer] = answerer(reader, prompt_file, decision="top1").answer([PLAIN], [[]])
        assert answer.text == name


def test_another_image_is_another_entry_for_a_reader_that_can_see(prompt_file, tmp_path):
    path = tmp_path / "same name.jpg"
    reader = Scripted(abilities=("images", "log_probs"))
    tested = answerer(reader, prompt_file)
    for content in (b"one", b"two", b"one"):
        path.write_bytes(content)
        tested.answer([Question(1, "What is it?", image=path)], [[]])
    assert tested.cached.generated == 2
    tested.answer([Question(1, "What is it?", image=b"two")], [[]])  # content, not the path
    assert tested.cached.generated == 2


def test_a_generation_without_log_probabilities_comes_back_the_same(prompt_file):
    reader = Scripted(lambda text: Generation("Füße \u4e2d \U0001f428"), abilities=())
    first = answerer(reader, prompt_file, decision="top1").answer([PLAIN], [[]])
    again = answerer(reader, prompt_file, decision="top1").answer([PLAIN], [[]])
    assert again == first
    assert first[0].drafts[0].log_prob is None
    assert reader.calls == 1


def test_the_cache_can_be_switched_off(prompt_file, fresh_cache):
    reader = Scripted()
    tested = answerer(reader, prompt_file, cache=False)
    tested.answer([PLAIN], [[]])
    tested.answer([PLAIN], [[]])
    assert reader.calls == 2
    assert not list(fresh_cache.rglob("*.sqlite"))


def test_a_reader_that_fails_leaves_nothing_in_the_cache(prompt_file):
    def fail(text):
        raise RuntimeError("no such layer")

    [failure] = answerer(Scripted(fail), prompt_file).answer([PLAIN], [[]])
    assert failure == Failure("the reader Scripted: no such layer")

    def give_up(text):
        raise MemoryError

    with pytest.raises(UserError, match="the reader Scripted: out of memory"):
        answerer(Scripted(give_up), prompt_file).answer([PLAIN], [[]])
    reader = Scripted()
    answerer(reader, prompt_file).answer([PLAIN], [[]])
    assert reader.calls == 1


def test_the_fingerprint_follows_rule_prompt_and_reader_but_not_the_cache(prompt_file, tmp_path):
    base = answerer(Scripted(), prompt_file).fingerprint
    assert answerer(Scripted(), prompt_file, cache=False).fingerprint == base
    copy = tmp_path / "another name.jinja"
    copy.write_bytes(Path(prompt_file).read_bytes())
    assert answerer(Scripted(), str(copy)).fingerprint == base
    copy.write_text("{{ question }}", encoding="utf-8")
    others = {
        answerer(Scripted(), str(copy)).fingerprint,
        answerer(Scripted(fingerprint="other"), prompt_file).fingerprint,
        answerer(Scripted(), prompt_file, passages=2).fingerprint,
        answerer(Scripted(), prompt_file, decision="top1").fingerprint,
        answerer(Scripted(), prompt_file, temperature=2).fingerprint,
        answerer(Scripted(), prompt_file, extract={"lower": False}).fingerprint,
    }
    assert len({base, *others}) == 7
