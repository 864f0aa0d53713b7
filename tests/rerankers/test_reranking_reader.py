"""Rerankers and gates that ask a reader: tables by hand, a tiny model against its forward pass."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import reader_models
import torch
import transformers
from abilities import give
from hypothesis import given
from hypothesis import strategies as st

from ravqa.answering.prompt import PromptTemplate
from ravqa.core.control_tokens import ControlTokens
from ravqa.core.errors import UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Description, Hit, Passage, Question, Tag
from ravqa.core.registry import Entry
from ravqa.core.settings import validate
from ravqa.images.decode import image_bytes, open_image
from ravqa.pipeline import Pipeline, check_settings
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Prompt, Reader
from ravqa.readers.transformers_llm import TransformersLLM
from ravqa.readers.transformers_vlm import TransformersVLM
from ravqa.rerankers.gate import Gate
from ravqa.rerankers.vlm import VLMReranker
from ravqa.rerankers.yes_no import YesNo, YesNoConfig, probability

PHOTOS = sorted((SAMPLE / "val2014").glob("*.jpg"))[:2]
WORDS = ["yes", "Yes", " yes", "no", " No", "maybe", "yes\n", "yesterday", ""]


class Table(Reader):
    """A reader whose next token follows a table: the prompt's number of words chooses a row."""

    max_new_tokens = 4
    ends = frozenset({8})
    context = None
    weights = "a table"

    def __init__(self, abilities=("next_token",), deterministic=True):
        give(self, abilities)
        self.deterministic = deterministic
        self.fingerprint = f"table/{sorted(abilities)}"
        self.asked = []

    def logits(self, prompt):
        seed = len(prompt.text.split())
        if prompt.image is not None:
            seed += 1000 * len(image_bytes(prompt.image))
        return np.random.default_rng(seed).normal(scale=2.0, size=len(WORDS))

    def next_token_logprobs(self, prompts, prefixes):
        assert all(len(prefix) == 0 for prefix in prefixes)
        self.asked += prompts
        rows = np.array([self.logits(prompt) for prompt in prompts])
        return list((rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)).astype(np.float32))

    def decode(self, tokens):
        return "".join(WORDS[token] for token in tokens)

    def score(self, prompts, answers):
        self.asked += prompts
        return [-float(len(p.text)) / 100 - len(a) for p, a in zip(prompts, answers, strict=True)]

    def generate(self, prompts):
        return [Generation("a leaf") for _ in prompts]


def yes_probability(reader, prompt):
    """By hand: tokens 0, 1, 2 are yes, tokens 3 and 4 are no."""
    weights = np.exp(reader.logits(prompt))
    return weights[:3].sum() / weights[:5].sum()


KOALA = Question(
    1,
    "What does this animal eat?",
    image=PHOTOS[0],
    description=Description(tags=(Tag(("koala",), 0.9),), caption="A koala in a tree"),
)
TEXTS = ["Koalas eat leaves.", "Iron is a metal, and not a kind of food.", "A tower", "b"]
PASSAGES = [Passage(f"p{i}", text, title="T") for i, text in enumerate(TEXTS, 1)]
PAIRS = [(Hit(p.passage_id, 9.0 - i, i), p) for i, p in enumerate(PASSAGES, 1)]


def vlm(reader, **options):
    return VLMReranker(validate(VLMReranker.Config, options, "reranking.0"), reader)


def gate(reader=None, **options):
    return Gate(validate(Gate.Config, options, "reranking.0"), reader)


# Probabilities


def test_every_spelling_of_a_word_counts_and_nothing_else(fresh_cache):
    reader = Table()
    tested = YesNo(YesNoConfig(), reader, "the test")
    prompts = [Prompt("a " * n) for n in range(1, 12)]
    expected = [yes_probability(reader, prompt) for prompt in prompts]
    found = [probability(odds) for odds in tested.log_odds(prompts)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_other_words_by_settings(fresh_cache):
    reader = Table()
    config = YesNoConfig(positive=("maybe", "yesterday"), negative=("NO ",))
    [odds] = YesNo(config, reader, "the test").log_odds([Prompt("a b")])
    weights = np.exp(reader.logits(Prompt("a b")))
    expected = math.log((weights[5] + weights[7]) / (weights[3] + weights[4]))
    assert odds == pytest.approx(expected, abs=1e-5)


def test_scores_of_whole_words(fresh_cache):
    reader = Table(abilities=("score",))
    config = YesNoConfig(positive=("yes", "y"), negative=("no",))
    tested = YesNo(config, reader, "the test")
    assert tested.way == "score"
    [odds] = tested.log_odds([Prompt("x" * 50)])
    assert odds == pytest.approx(math.log((math.exp(-3) + math.exp(-1)) / math.exp(-2)))
    # A prompt's words stand together.
    assert [p.text for p in reader.asked] == ["x" * 50] * 3


@given(st.floats(-1000, 1000))
def test_the_probability_is_the_logistic_function(x):
    p = probability(x)
    assert 0 <= p <= 1
    assert p == pytest.approx(0.5 * (1 + math.tanh(x / 2)), abs=1e-12)


def test_what_cannot_be_at_all_is_as_likely_either_way(fresh_cache):
    reader = Table(abilities=("score",))
    never = {"yes": -math.inf, "no": -math.inf}
    reader.score = lambda prompts, answers: [never[a] for a in answers]
    assert YesNo(YesNoConfig(cache=False), reader, "x").log_odds([Prompt("a")]) == [0.0]
    never["yes"] = -3.0
    assert YesNo(YesNoConfig(cache=False), reader, "x").log_odds([Prompt("a")]) == [1000.0]


@pytest.mark.parametrize("way", ["next-token", "score"])
def test_a_probability_that_is_no_number_is_no_yes(fresh_cache, way):
    class Overflowing(Table):
        def next_token_logprobs(self, prompts, prefixes):
            return list(np.full((len(prompts), len(WORDS)), np.nan, np.float32))

        def score(self, prompts, answers):
            return [math.nan if answer == "yes" else -1.0 for answer in answers]

    asker = YesNo(YesNoConfig(way=way), Overflowing(("next_token", "score")), "the test")
    with pytest.raises(UserError, match=r"the test: .* not a number: set its dtype to float32"):
        asker.log_odds([Prompt("a b c")])


def test_answers_are_kept_by_text_image_words_and_reader(fresh_cache, tmp_path):
    def ask(prompt, reader=None, **options):
        tested = YesNo(YesNoConfig(**options), reader or Table(), "the test")
        tested.log_odds([prompt, prompt])
        return tested.asked

    copy = tmp_path / "other-name.jpg"
    copy.write_bytes(PHOTOS[0].read_bytes())
    assert ask(Prompt("a", PHOTOS[0])) == 1
    assert ask(Prompt("a", PHOTOS[0]), batch_size=1) == 0
    assert ask(Prompt("a", copy)) == 0
    assert ask(Prompt("a", PHOTOS[1])) == 1
    assert ask(Prompt("a")) == 1
    assert ask(Prompt("b", PHOTOS[0])) == 1
    assert ask(Prompt("a"), positive=("maybe",)) == 1
    assert ask(Prompt("a"), Table(abilities=("score",))) == 1
    assert ask(Prompt("a"), cache=False) == 1
    dice = Table(deterministic=False)
    assert ask(Prompt("a"), dice) == 1
    assert ask(Prompt("a"), dice) == 1


def test_readers_without_probabilities_are_refused(fresh_cache):
    with pytest.raises(UserError, match="the test asks a reader for probabilities, which this"):
        YesNo(YesNoConfig(), Table(abilities=("log_probs",)), "the test")
    with pytest.raises(UserError, match="test asks in the way score, which this"):
        YesNo(YesNoConfig(way="score"), Table(), "the test")
    tested = YesNo(YesNoConfig(negative=("never",)), Table(), "the test")
    with pytest.raises(UserError, match="no token for 'never': set other words, or way to score"):
        tested.log_odds([Prompt("a")])


# vlm


def test_the_order_is_that_of_the_probabilities(fresh_cache):
    reader = Table(abilities=("next_token", "images"))
    template = PromptTemplate.load("rerank-yes-no")
    expected = {
        p.passage_id: yes_probability(reader, Prompt(template.render(KOALA, [p]), KOALA.image))
        for p in PASSAGES
    }
    tested = vlm(reader)
    assert tested.supports_images
    [found, none] = tested.rerank([KOALA, Question(2, "?")], [PAIRS, []])
    assert none == []
    assert [h.passage_id for h in found] == sorted(expected, key=expected.get, reverse=True)
    assert [h.score for h in found] == pytest.approx(sorted(expected.values())[::-1], abs=1e-6)
    assert sorted(h.retrieval_score for h in found) == [5.0, 6.0, 7.0, 8.0]
    for text, prompt in zip(TEXTS, reader.asked, strict=True):
        assert prompt.image == PHOTOS[0]
        for part in (f"T: {text}", KOALA.question, "koala", "A koala in a tree"):
            assert part in prompt.text


def test_log_odds_order_alike(fresh_cache):
    reader = Table()
    [by_odds] = vlm(reader, score="log-odds").rerank([KOALA], [PAIRS])
    [found] = vlm(reader).rerank([KOALA], [PAIRS])
    assert [h.passage_id for h in by_odds] == [h.passage_id for h in found]
    assert [probability(h.score) for h in by_odds] == pytest.approx([h.score for h in found])
    assert len(reader.asked) == 4  # the second was answered by the cache
    assert all(prompt.image is None for prompt in reader.asked)  # it cannot see


def test_depth_and_long_passages(fresh_cache):
    reader = Table()
    tested = vlm(reader, depth=2, max_words=3)
    [found] = tested.rerank([KOALA], [PAIRS])
    assert [h.passage_id for h in found[2:]] == ["p3", "p4"]
    assert tested.counts()["scored"] == 2
    assert tested.truncated == 1  # the first has three words
    assert "T: Iron is a\n" in reader.asked[1].text
    assert tested.fingerprint != vlm(reader, depth=2).fingerprint


def test_control_tokens_in_what_a_reader_is_asked_are_counted(fresh_cache):
    reader = Table()
    reader.control_tokens = ControlTokens(["<x>", "<|end|>"])
    evil = Question(1, "What <x> is it?")
    passages = [Passage("a", "a <|end|> <x>"), Passage("b", "b"), Passage("c", "<x>")]
    pairs = [(Hit(p.passage_id, 9.0 - i, i), p) for i, p in enumerate(passages, 1)]
    tested = vlm(reader, depth=2)
    tested.rerank([evil, KOALA], [pairs, pairs])
    # The question's in both of its prompts, and the first passage's for both questions.
    assert tested.counts()["neutralised"] == 2 * 1 + 2 * 2
    assert all("<x>" not in p.text and "<|end|>" not in p.text for p in reader.asked)
    known = vlm(reader, depth=2)
    known.rerank([evil, KOALA], [pairs, pairs])
    assert known.counts() == {"scored": 0, "truncated": 0, "neutralised": 6}
    needed = gate(reader, rule="reader", at_least=0.5)
    needed.keep([evil, KOALA], [[pair[0] for pair in pairs]] * 2)
    assert needed.counts() == {"scored": 2, "neutralised": 1}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama that has a token for every byte: its words for yes and no are y and n."""
    return reader_models.llama(tmp_path_factory.mktemp("llama"))


LETTERS = {"positive": ["y"], "negative": ["n"]}


def letter_tokens(tokenizer, letter):
    """Every token that is the letter, but for case and white space."""
    texts = [tokenizer.decode([t], skip_special_tokens=True) for t in range(len(tokenizer))]
    return [t for t, text in enumerate(texts) if text.strip().lower() == letter]


def test_a_model_says_what_its_forward_pass_says(fresh_cache, llama):
    reader = TransformersLLM(TransformersLLM.Config(model=str(llama), dtype="float32"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
    template = PromptTemplate.load("rerank-yes-no")
    yes, no = letter_tokens(tokenizer, "y"), letter_tokens(tokenizer, "n")
    assert len(yes) >= 2
    assert len(no) >= 2
    expected = {}
    for passage in PASSAGES:
        ids = tokenizer(template.render(KOALA, [passage]), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            shares = model(ids).logits[0, -1].double().softmax(-1)
        expected[passage.passage_id] = float(shares[yes].sum() / shares[[*yes, *no]].sum())
    for batch_size in (1, 3):
        tested = vlm(reader, batch_size=batch_size, cache=False, **LETTERS)
        [found] = tested.rerank([KOALA], [PAIRS])
        assert {h.passage_id: h.score for h in found} == pytest.approx(expected, abs=1e-5)
        assert [h.passage_id for h in found] == sorted(expected, key=expected.get, reverse=True)


def test_a_model_scores_words_as_teacher_forcing_does(fresh_cache, llama):
    reader = TransformersLLM(TransformersLLM.Config(model=str(llama), dtype="float32"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
    prompt = PromptTemplate.load("rerank-yes-no").render(KOALA, [PASSAGES[0]])
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]

    def log_prob(word):
        head = tokenizer(prompt)["input_ids"]
        tail = tokenizer(prompt + " " + word)["input_ids"][len(head) :]
        with torch.no_grad():
            logs = model(torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
        places = range(len(head) - 1, len(head) + len(tail) - 1)
        end = logs[-1, [1, newline]].logsumexp(-1)
        return float(sum(logs[i, t] for i, t in zip(places, tail, strict=True)) + end)

    [found] = vlm(reader, way="score", score="log-odds").rerank([KOALA], [PAIRS[:1]])
    assert found[0].score == pytest.approx(log_prob("yes") - log_prob("no"), abs=1e-4)


def test_a_model_that_sees_is_given_image_and_passage(fresh_cache, tmp_path):
    folder = reader_models.llava(tmp_path)
    reader = TransformersVLM(TransformersVLM.Config(model=str(folder), dtype="float32"))
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    yes, no = (letter_tokens(processor.tokenizer, letter) for letter in "yn")
    template = PromptTemplate.load("rerank-yes-no")

    def expected(question, passage):
        prompt = template.render(question, [passage])
        inputs = processor(
            images=open_image(question.image),
            text=f"USER: <image>\n{prompt}\nASSISTANT:",
            return_tensors="pt",
        )
        with torch.no_grad():
            shares = model(**inputs).logits[0, -1].double().softmax(-1)
        return float(shares[yes].sum() / shares[[*yes, *no]].sum())

    other = replace(KOALA, image=PHOTOS[1])
    found = vlm(reader, **LETTERS).rerank([KOALA, other], [PAIRS[:3], PAIRS[:2]])
    for question, hits, passages in zip(
        (KOALA, other), found, (PASSAGES[:3], PASSAGES[:2]), strict=True
    ):
        assert {h.passage_id: h.score for h in hits} == pytest.approx(
            {p.passage_id: expected(question, p) for p in passages}, abs=1e-5
        )
    assert found[0][0].score != found[1][0].score


def test_a_passage_that_does_not_fit_is_told_with_the_way_out(fresh_cache, llama):
    config = TransformersLLM.Config(model=str(llama), dtype="float32", context=60)
    reader = TransformersLLM(config)
    [failure] = vlm(reader, **LETTERS).rerank([KOALA], [PAIRS])
    assert re.match(r"the reranker vlm: .*context of 60.*max_words cuts", failure.reason)


@pytest.mark.slow
def test_real_weights_tell_a_passage_about_the_question_from_one_about_something_else(reader):
    """Plumbing on SmolLM2-135M: a model that small is no good reranker, but no coin either."""
    texts = {
        "on": "The capital of France is Paris, a city on the Seine.",
        "off": "Bananas are yellow and rich in potassium.",
    }
    pairs = [
        (Hit(name, 0.0, i), Passage(name, text)) for i, (name, text) in enumerate(texts.items(), 1)
    ]
    question = Question(1, "Which city is the capital of France?")
    [found] = vlm(reader).rerank([question], [pairs])
    assert [h.passage_id for h in found] == ["on", "off"]
    assert all(0.01 < h.score < 0.99 for h in found)


# gate


def hits_of(*scores):
    return [(Hit(f"p{i}", score, i), PASSAGES[0]) for i, score in enumerate(scores, 1)]


@pytest.mark.parametrize(
    ("options", "scores", "open_"),
    [
        ({"rule": "best", "at_least": 2.0}, [2.0, 1.0], True),
        ({"rule": "best", "at_least": 2.0}, [1.9, 1.0], False),
        ({"rule": "best", "at_least": 2.0}, [1.0, 3.0], True),  # as an oracle's
        ({"rule": "best", "at_least": -5.0}, [], False),
        ({"rule": "margin", "at_least": 1.0}, [5.0, 4.0, 0.0], True),
        ({"rule": "margin", "at_least": 1.0}, [5.0, 4.5, 0.0], False),
        ({"rule": "margin", "at_least": 1.0, "against": 3}, [5.0, 4.5, 0.0], True),
        ({"rule": "margin", "at_least": 1.0, "against": 3}, [5.0, 4.5], True),
        ({"rule": "margin", "at_least": 1.0}, [5.0], True),
    ],
)
def test_a_gate_by_scores(options, scores, open_):
    pairs = hits_of(*scores)
    [found] = gate(**options).rerank([KOALA], [pairs])
    assert found == ([hit for hit, _ in pairs] if open_ else [])


def test_a_gate_that_asks_a_reader(fresh_cache):
    reader = Table(abilities=("next_token", "images"))
    questions = [Question(i, "what " * i, image=PHOTOS[i % 2]) for i in range(1, 9)]
    template = PromptTemplate.load("gate-needs-knowledge")
    expected = [yes_probability(reader, Prompt(template.render(q, []), q.image)) for q in questions]
    limit = sorted(expected)[4]
    tested = gate(reader, rule="reader", at_least=limit - 1e-6)
    found = tested.rerank(questions, [PAIRS] * 7 + [[]])
    kept = [hit for hit, _ in PAIRS]
    assert found == [kept if p >= limit else [] for p in expected[:7]] + [[]]
    assert 1 < found.count(kept) < 7
    assert tested.supports_images
    assert tested.counts()["scored"] == 7  # nothing is asked about a question without passages
    assert all(TEXTS[0] not in prompt.text for prompt in reader.asked)


# In a pipeline


FILE = {
    "retriever": {"name": "random"},
    "reader": {"name": "table"},
    "answering": {"decision": "top1"},
}


@pytest.fixture
def tables(monkeypatch):
    """The registered reader "table", and all that were made."""
    made = []

    class Built(Table):
        Config = YesNoConfig  # some options

        def __init__(self, config):
            super().__init__()
            made.append(self)
            self.switched_off = {"sharing": f"it is reader {len(made)}"}

    monkeypatch.setitem(READERS._entries, "table", Entry("a:b", "x"))
    get = READERS.get
    monkeypatch.setattr(READERS, "get", lambda name: Built if name == "table" else get(name))
    return made


def test_what_readers_of_rerankers_do_not_do_is_told(fresh_cache, tables):
    asking = {"name": "gate", "rule": "reader", "at_least": 0.5}
    other = {"name": "table", "batch_size": 3}
    settings = {**FILE, "reranking": [{"name": "vlm"}, {**asking, "reader": other}]}
    # The vlm asks the pipeline's own reader.
    assert Pipeline.from_config(settings).switched_off == {
        "sharing": "it is reader 1",
        "gate: sharing": "it is reader 2",
    }
    found = Pipeline.from_config(settings, retrieval_only=True).switched_off
    assert list(found) == ["vlm: sharing", "gate: sharing"]


def test_rerankers_share_the_pipelines_reader(fresh_cache, tables):
    other = {"name": "table", "batch_size": 3}
    stages = [
        {"name": "vlm"},
        {"name": "vlm", "score": "log-odds", "reader": other},
        {"name": "gate", "rule": "reader", "at_least": 0.0, "reader": other},
        {"name": "gate", "rule": "best", "at_least": 0.0},
        {"name": "vlm", "reader": {"name": "table"}},
    ]
    pipeline = Pipeline.from_config({**FILE, "reranking": stages})
    assert len(tables) == 2
    assert list(pipeline.rerankers) == ["vlm", "vlm-2", "gate", "gate-2", "vlm-3"]
    assert pipeline.weights["reranking"] == "a table"


def test_without_a_reader_of_its_own_a_run_for_retrieval_loads_the_pipelines(fresh_cache, tables):
    settings = {**FILE, "reranking": [{"name": "vlm"}]}
    pipeline = Pipeline.from_config(settings, retrieval_only=True)
    assert len(tables) == 1
    assert pipeline.answerer is None
    Pipeline.from_config({**FILE, "reranking": []}, retrieval_only=True)
    assert len(tables) == 1


@pytest.mark.parametrize(
    ("reranking", "message"),
    [
        ({"name": "gate", "rule": "best"}, "test: reranking.0: key 'at_least' is missing"),
        (
            {"name": "gate", "rule": "best", "at_least": 1, "against": 3, "prompt": "x"},
            "test: reranking.0: against, prompt: not used by the rule best",
        ),
        (
            {"name": "gate", "rule": "reader", "at_least": 1.5},
            "test: reranking.0: at_least 1.5: a probability, 0 to 1, is expected",
        ),
        (
            {"name": "gate", "rule": "reader", "at_least": 0.5, "against": 2},
            "test: reranking.0: against: not used by the rule reader",
        ),
        ({"name": "vlm", "reader": {"name": "first-word"}}, "no reader 'first-word': did you mean"),
        (
            {"name": "vlm", "reader": {"name": "first-words", "wrds": 1}},
            "vlm.reader: unknown key 'wrds': did you mean words",
        ),
        (
            {"name": "vlm", "prompt": "rerank-yes"},
            "no prompt 'rerank-yes': did you mean ",
        ),
        ({"name": "vlm", "positive": []}, "test: reranking.0: key 'positive': a list of at least"),
        (
            {"name": "vlm", "positive": ["yes", "No"]},
            "test: reranking.0: positive, negative: a word is in both",
        ),
        ({"name": "vlm", "positive": [" "]}, "test: reranking.0: positive, negative: a blank word"),
        (
            {"name": "vlm", "depth": 2},
            "test: reranking.0: the depth 2 of vlm is less than the 3 passages that are read",
        ),
    ],
)
def test_bad_settings_are_one_line_with_their_place(reranking, message):
    answering = {"decision": "concat", "passages": 3}
    settings = {**FILE, "reader": {"name": "first-words"}, "answering": answering}
    with pytest.raises(UserError) as e:
        check_settings({**settings, "reranking": [reranking]}, "test")
    assert str(e.value).startswith(message)
    assert "\n" not in str(e.value)


def test_a_reader_that_gives_no_probabilities_is_told_when_it_is_loaded(fresh_cache):
    settings = {**FILE, "reader": {"name": "first-words"}, "reranking": [{"name": "vlm"}]}
    with pytest.raises(UserError, match="the reranker vlm asks a reader for probabilities"):
        Pipeline.from_config(settings)
