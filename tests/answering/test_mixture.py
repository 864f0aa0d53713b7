"""The mixture rule: by hand, against all sequences of a tiny vocabulary, and on real models."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spelling import LONGEST, Spelling, all_sequences, chance, prompts

from ravqa.answering.answerer import Answerer
from ravqa.answering.config import AnsweringConfig
from ravqa.answering.rules import answering_config
from ravqa.answering.rules.mixture import decode
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Passage, Question


def test_two_passages_by_hand():
    table = {
        # of the end, a, b, c
        ("one", ""): [0.0, 0.5, 0.4, 0.1],
        ("two", ""): [0.0, 0.1, 0.9, 0.0],
        ("one", "b"): [0.5, 0.3, 0.1, 0.1],
        ("two", "b"): [0.2, 0.2, 0.2, 0.4],
        ("one", "bc"): [1.0, 0.0, 0.0, 0.0],
        ("two", "bc"): [0.8, 0.1, 0.1, 0.0],
    }
    table = {key: [max(p, 1e-30) for p in row] for key, row in table.items()}
    reader = Spelling(table)
    priors = [0.6, 0.4]
    [mixed] = decode([(prompts(["one", "two"]), [math.log(p) for p in priors])], reader)
    # First token: a has .6*.5 + .4*.1 = .34, b .6*.4 + .4*.9 = .60; the posterior is .24/.60 = .4
    # and .36/.60 = .6. Second: the end has .4*.5 + .6*.2 = .32, a .4*.3 + .6*.2 = .24,
    # c .4*.1 + .6*.4 = .28.
    assert mixed.text == "b"
    assert mixed.tokens == 2
    assert math.exp(mixed.log_prob) == pytest.approx(0.60 * 0.32)
    assert [math.exp(v) for v in mixed.likelihoods] == pytest.approx([0.4 * 0.5, 0.9 * 0.2])
    assert mixed.posteriors == pytest.approx([0.6 * 0.2 / 0.192, 0.4 * 0.18 / 0.192])
    # Alone, the first passage says "a", and joint_max would have to choose between "a" and "bc".
    assert reader.generate(prompts(["two"]))[0].text == "bc"


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.lists(st.floats(0.05, 1), min_size=1, max_size=4))
def test_it_is_greedy_decoding_of_the_sum_over_all_passages(seed, weights):
    reader = Spelling(seed=seed)
    texts = [f"passage {k}" for k in range(len(weights))]
    priors = [w / sum(weights) for w in weights]
    [mixed] = decode([(prompts(texts), [math.log(p) for p in priors])], reader)

    def marginal(sequence):
        return math.fsum(
            p * chance(reader, text, sequence) for p, text in zip(priors, texts, strict=True)
        )

    every = list(all_sequences())
    assert math.fsum(map(marginal, every)) == pytest.approx(1)
    # By brute force: the token that most of all sequences' probability goes on with, each time.
    chosen = ()
    while len(chosen) < LONGEST and 0 not in chosen:
        chosen = max(
            ((*chosen, token) for token in range(4)),
            key=lambda begun: math.fsum(marginal(s) for s in every if s[: len(begun)] == begun),
        )
    assert mixed.text == reader.decode(chosen)
    assert mixed.tokens == len(chosen)
    assert math.exp(mixed.log_prob) == pytest.approx(marginal(chosen), rel=1e-5)
    own = [p * chance(reader, t, chosen) for p, t in zip(priors, texts, strict=True)]
    assert mixed.posteriors == pytest.approx([v / sum(own) for v in own], rel=1e-5)


@given(st.integers(0, 10**6))
def test_one_passage_is_the_readers_own_generation(seed):
    reader = Spelling(seed=seed)
    [plain] = reader.generate(prompts(["x"]))
    for k in (1, 3):  # and so are equal passages
        [mixed] = decode([(prompts(["x"] * k), [-math.log(k)] * k)], reader)
        assert (mixed.text, mixed.tokens) == (plain.text, plain.tokens)
        assert mixed.log_prob == pytest.approx(plain.log_prob, abs=1e-5)
        assert mixed.posteriors == pytest.approx([1 / k] * k)


@given(st.integers(0, 10**6))
def test_questions_decoded_together_do_not_disturb_each_other(seed):
    reader = Spelling(seed=seed)
    asked = [
        (prompts([f"{q}/{k}" for k in range(1 + q % 3)]), [-math.log(1 + q % 3)] * (1 + q % 3))
        for q in range(5)
    ]
    assert decode(asked, reader) == [decode([one], reader)[0] for one in asked]


def test_pruning_goes_on_with_the_fewest_passages_that_hold_the_share():
    even = [0.25] * 4
    table = {(t, p): even for t in "wxyz" for p in ("", "a", "aa")}
    table |= {("w", ""): [0.05, 0.8, 0.1, 0.05], ("x", ""): [0.05, 0.8, 0.1, 0.05]}
    table |= {("y", ""): [0.4, 0.1, 0.1, 0.4]}
    table |= {(t, "a"): [0.1, 0.7, 0.1, 0.1] for t in "wx"}
    table |= {(t, "aa"): [0.7, 0.1, 0.1, 0.1] for t in "wx"}
    reader = Spelling(table)
    priors = [0.4, 0.3, 0.2, 0.1]
    asked = [(prompts("wxyz"), [math.log(p) for p in priors])]
    [mixed] = decode(asked, reader, prune=0.85)
    # Of the priors, .4 + .3 + .2 hold .85: z is never asked. After "a" the posterior of w, x, y is
    # .4*.8, .3*.8, .2*.1 of .58: .552, .414, .034, and y goes too.
    assert reader.rows == [list("wxy"), list("wx"), list("wx")]
    assert mixed.text == "aa"
    assert mixed.posteriors == pytest.approx([0.4 / 0.7, 0.3 / 0.7, 0, 0])
    assert mixed.likelihoods[2:] == (None, None)
    assert math.exp(mixed.likelihoods[0]) == pytest.approx(0.8 * 0.7 * 0.7)
    whole = [decode(asked, Spelling(table), prune=share)[0] for share in (None, 1.0)]
    assert whole[0].likelihoods == whole[1].likelihoods
    assert whole[0].posteriors == pytest.approx(whole[1].posteriors)


# --- as a rule


def found(*pairs):
    return [(Hit(t, s, rank), Passage(t, t)) for rank, (t, s) in enumerate(pairs, 1)]


@pytest.fixture
def answerer(tmp_path, fresh_cache):
    path = tmp_path / "bare.jinja"
    path.write_text("{{ question }}{% for p in passages %}[{{ p.text }}]{% endfor %}", "utf-8")

    def make(reader, **options):
        settings = {"decision": "mixture", "prompt": str(path), "passages": 3, **options}
        return Answerer(answering_config(settings), reader)

    return make


def test_drafts_hold_what_each_passage_has_to_say_about_the_answer(answerer):
    reader = Spelling(seed=5)
    tested = answerer(reader, empty_passage=True, temperature=2.0)
    [answer] = tested.answer([Question(1, "Q")], [found(("x", 3.0), ("y", 1.0))])
    texts = ["Q[x]", "Q[y]", "Q"]
    # log softmax of (3, 1, 2) / 2: the empty passage has the mean score
    weights = [math.exp(s / 2) for s in (3, 1, 2)]
    priors = [w / sum(weights) for w in weights]
    [mixed] = decode([(prompts(texts), [math.log(p) for p in priors])], reader)
    assert [d.passage_ids for d in answer.drafts] == [("x",), ("y",), ()]
    assert {d.raw for d in answer.drafts} == {mixed.text}
    assert (answer.raw, answer.log_prob) == (mixed.text, mixed.log_prob)
    assert [d.prior for d in answer.drafts] == pytest.approx(priors)
    assert [d.posterior for d in answer.drafts] == pytest.approx(mixed.posteriors)
    assert [d.log_prob for d in answer.drafts] == pytest.approx(mixed.likelihoods)
    assert [d.score for d in answer.drafts] == pytest.approx(
        [math.log(p) + v for p, v in zip(priors, mixed.likelihoods, strict=True)]
    )


def test_a_uniform_prior_and_pruning_are_settings(answerer):
    first = answerer(Spelling(seed=5), prior="uniform", prune=0.5)
    [answer] = first.answer([Question(1, "Q")], [found(("x", 9.0), ("y", 1.0), ("z", 0.0))])
    assert [d.prior for d in answer.drafts] == pytest.approx([1 / 3] * 3)
    assert sum(d.posterior for d in answer.drafts) == pytest.approx(1)
    assert answer.drafts[2].posterior == 0.0  # two of three hold a half
    assert (answer.drafts[2].log_prob, answer.drafts[2].score) == (None, None)


def test_questions_of_a_batch_are_stepped_through_together_up_to_its_size(answerer):
    reader = Spelling(seed=6)
    questions = [Question(i, f"Q{i}") for i in range(4)]
    retrieved = [found(("x", 1.0), ("y", 0.0))] * 3 + [found(("x", 1.0))]
    tested = answerer(reader, batch_size=4)
    answers = tested.answer(questions, retrieved)
    assert max(len(rows) for rows in reader.rows) == 4
    # One passage alone is left to the reader's own generation.
    assert not any("Q3[x]" in rows for rows in reader.rows)
    assert answers[3].drafts[0].posterior is None
    alone = answerer(Spelling(seed=6), batch_size=1, cache=False)
    assert [a.text for a in answers] == [
        alone.answer([q], [r])[0].text for q, r in zip(questions, retrieved, strict=True)
    ]


def test_a_second_run_asks_the_reader_nothing(answerer):
    questions = [Question(i, f"Q{i}") for i in range(3)]
    retrieved = [found(("x", 1.0), ("y", 0.0))] * 3
    first, second, other = Spelling(seed=6), Spelling(seed=6), Spelling(seed=6)
    tested = answerer(first)
    answers = tested.answer(questions, retrieved)
    assert tested.cached.decoded == 3
    assert answerer(second, extract={"lower": False}).answer(questions, retrieved) == answers
    assert not second.rows
    answerer(other, prune=0.9).answer(questions, retrieved)  # another mixture
    assert other.rows
    weighed = Spelling(seed=6)  # the same prompts, weighed otherwise
    answerer(weighed).answer(questions, [found(("x", 2.0), ("y", 0.0))] * 3)
    assert weighed.rows


def test_a_prompt_that_fails_costs_no_other_question(answerer):
    class Refusing(Spelling):
        def next_token_logprobs(self, prompts, prefixes):
            rows = super().next_token_logprobs(prompts, prefixes)
            return [
                Failure("too long") if "bad" in p.text else row
                for p, row in zip(prompts, rows, strict=True)
            ]

    retrieved = found(("x", 1.0), ("y", 0.0))
    questions = [Question(i, text) for i, text in enumerate(("Q0", "bad", "Q2"))]
    tested = answerer(Refusing(seed=1), batch_size=100)
    answers = tested.answer(questions, [retrieved] * 3)
    assert answers[1] == Failure("too long")
    assert tested.cached.decoded == 2
    again = Spelling(seed=1)
    good = answerer(again).answer([questions[0], questions[2]], [retrieved] * 2)
    assert not again.rows  # they were kept
    assert [a.text for a in good] == [
        answerer(Spelling(seed=1), cache=False).answer([q], [retrieved])[0].text
        for q in (questions[0], questions[2])
    ]
    assert answers == [good[0], Failure("too long"), good[1]]
    assert tested.answer([questions[1]], [retrieved]) == [Failure("too long")]


# --- real models


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama with random weights as a reader: it proves the computation, not answers."""
    import reader_models

    from ravqa.readers.transformers_llm import TransformersLLM

    folder = reader_models.llama(tmp_path_factory.mktemp("llama"))
    config = TransformersLLM.Config(model=str(folder), max_new_tokens=6, stop_at_newline=False)
    return folder, TransformersLLM(config)


@pytest.fixture(scope="module")
def forced(llama):
    """log p(tokens | text) by the model itself, one text at a time."""
    import torch
    import transformers

    folder, _ = llama
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def log_prob(text, tokens):
        ids = tokenizer(text)["input_ids"]
        with torch.inference_mode():
            logs = model(torch.tensor([ids + tokens])).logits[0].log_softmax(-1)
        return sum(float(logs[len(ids) - 1 + i, token]) for i, token in enumerate(tokens))

    return log_prob


def test_of_a_llama_the_mixture_is_what_its_own_forward_passes_give(llama, forced):
    _, reader = llama
    texts = [f"Passage: the {thing} is large. Question: what?" for thing in ("fox", "tree", "dog!")]
    priors = [0.5, 0.3, 0.2]
    tokens = []

    class Kept:
        """The reader, and the tokens that were decoded."""

        def __getattr__(self, name):
            return getattr(reader, name)

        def decode(self, decoded):
            tokens[:] = decoded
            return reader.decode(decoded)

    [mixed] = decode([(prompts(texts), [math.log(p) for p in priors])], Kept())
    likelihoods = [forced(text, tokens) for text in texts]
    assert mixed.likelihoods == pytest.approx(likelihoods, abs=1e-4)
    total = math.fsum(p * math.exp(v) for p, v in zip(priors, likelihoods, strict=True))
    assert mixed.log_prob == pytest.approx(math.log(total), abs=1e-4)
    # No other token would have made any step more probable.
    for i, token in enumerate(tokens):
        logs = reader.next_token_logprobs(prompts(texts), [tokens[:i]] * 3)
        begun = [forced(text, tokens[:i]) for text in texts]
        joint = np.log(priors) + begun
        step = np.exp(np.asarray(logs) + joint[:, None]).sum(axis=0)
        assert step.max() <= step[token] * (1 + 1e-4)


def test_of_a_llama_equal_passages_are_its_own_generation(llama):
    _, reader = llama
    texts = ["Question: what is the capital of France? Answer:", "Passage: koalas. Question: what?"]
    plain = reader.generate(prompts(texts))
    asked = [(prompts([text] * k), [-math.log(k)] * k) for text in texts for k in (1, 2)]
    for mixed, generation in zip(
        decode(asked, reader), [g for g in plain for _ in (1, 2)], strict=True
    ):
        assert (mixed.text, mixed.tokens) == (generation.text, generation.tokens)
        assert mixed.log_prob == pytest.approx(generation.log_prob, abs=1e-4)


@pytest.mark.slow
def test_with_smollm2_the_passage_that_knows_the_answer_gains(reader, fresh_cache):
    question = Question(1, "Where do these animals live?")
    passages = [
        Passage("k", "The koala lives in the forests of eastern Australia.", title="Koala"),
        Passage("b", "Bread is made of flour and water, and baked in an oven.", title="Bread"),
    ]
    retrieved = [(Hit(p.passage_id, 0.0, i), p) for i, p in enumerate(passages, 1)]
    config = answering_config({"decision": "mixture", "passages": 2})
    [answer] = Answerer(config, reader).answer([question], [retrieved])
    assert "australia" in answer.text
    koala, bread = answer.drafts
    assert koala.posterior > 0.75  # before reading they were equal
    assert koala.posterior + bread.posterior == pytest.approx(1)
    own = Answerer(AnsweringConfig(decision="top1"), reader).answer([question], [retrieved])
    same = [(Hit(i, 0.0, rank), passages[0]) for rank, i in enumerate("pq", 1)]
    [twice] = Answerer(config, reader).answer([question], [same])
    assert twice.raw == own[0].raw
    assert twice.log_prob == pytest.approx(own[0].log_prob, abs=1e-3)
